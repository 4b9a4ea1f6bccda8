"""One receipt that training, predictions, exports, tuned graphs and a server agree."""
