"""The contenders, one file for each kind of library; `registry.CONTENDERS` lists them."""
