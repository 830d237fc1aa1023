"""Ray: the cluster, memory, jobs, the board, crews of workers, metrics."""
