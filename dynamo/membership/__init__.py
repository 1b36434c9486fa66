"""Who is in the cluster, what each knows of it, and who owns which partition. Sans-IO policy.

    members   the membership: a table that merges (a CRDT), kept alike on all nodes by
    gossip    which exchanges digests with one random peer a second, and what differs when they differ
    ring      the owners of every partition: a pure function of the members in status `normal` and of the cluster

Liveness is no part of it: joining and removing are acts of an administrator (paper 4.8.1).
"""
