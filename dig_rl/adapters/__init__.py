"""Our rewards in other trainers: TRL, EasyR1, verl. Nothing here imports them."""
