"""First floor: what happened?"""
