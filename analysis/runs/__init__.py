"""The folders that runs leave: finding, reading and writing them."""
