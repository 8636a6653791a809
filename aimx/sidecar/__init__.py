"""The HTTP side: messages, traces, workflows, audit proofs, health and metrics, for people and programs.

Reads. Delivers nothing and decides nothing about mail.
"""
