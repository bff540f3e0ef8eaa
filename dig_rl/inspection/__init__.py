"""Looking at a finished data folder, ours or imported: is it what it says, and does anything give the answer away?"""
