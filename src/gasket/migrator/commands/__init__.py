"""The commands of `gasket database`, one file each."""
