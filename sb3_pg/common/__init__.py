"""Building blocks shared by the algorithms. Estimators are free functions of arrays; buffers and algorithms call them."""
