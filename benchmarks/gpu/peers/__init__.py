"""The contenders on a GPU, one file for each kind of table; `registry.CONTENDERS` lists them."""
