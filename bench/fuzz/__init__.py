"""Requests and bytes that nobody should send, and what a server has to answer."""
