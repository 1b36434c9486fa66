"""Sockets: one Trio task that owns them all, and what it needs around it.

    reactor      the step: poll, receive, step the replica, commit, send
    connection   one socket: its decoder, its unsent output, its state
    peers        links to other nodes: dialling, backing off, queueing until a link is up
    handshake    who may talk to this node, decided from HELLO
    admin        answers for people and joiners, as functions of the membership
    commits      where a commit group is applied: here, or on the commit thread
    polling, portable                             what waits for sockets: one nested epoll, or Trio where that is missing
    timers, ticker, resolver, sockets, limits     small parts with one job each
    exchange, startup                             one request to another node, for starting and joining

Trio is met in `reactor`, `polling`, `portable`, `ticker`, `resolver`, `exchange` and `startup`; the rest is plain code driven by the reactor's
step. Why there is no task per connection: measured, DESIGN section 6.
"""
