"""The notebooks of a Kaggle competition, and the folder that is uploaded beside them."""
