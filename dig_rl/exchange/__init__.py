"""Other people's data sets into our data folder, and our data folder into other people's layouts."""
