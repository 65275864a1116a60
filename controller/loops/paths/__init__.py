"""Which paths does traffic take, decided again and again from what was measured?"""
