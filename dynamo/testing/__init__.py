"""Ways to test what is built on dynamo, and dynamo itself: a deterministic simulator with checkers, and clusters of real processes.

`cluster` starts `dynamo serve` children that can be killed, stopped and restarted. Nothing of the product imports this room, except the
command line for `dynamo demo`.
"""
