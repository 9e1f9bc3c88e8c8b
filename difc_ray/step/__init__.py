"""The algorithm of one step: what a worker computes, and what the coordinator makes of it."""
