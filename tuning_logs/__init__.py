"""Tuning records that ship with the package, one folder a target preset; none are shipped yet."""
