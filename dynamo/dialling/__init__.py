"""The way to a node, for clients and for other nodes, in bounded time: `names` looks a host up, `race` tries its addresses beside one another and
takes the first that answers a greeting, `trio_waits` is what that needs of Trio. Importing this room imports no loop."""
