"""Assets, corpora, backbones and their loading, token blocks, benchmark tasks."""
