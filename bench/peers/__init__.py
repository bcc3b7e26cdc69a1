"""Peers that do the same work, through their public interfaces."""
