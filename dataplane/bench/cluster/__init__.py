"""The benchmark between pods of a real cluster, which is spoken with through kubectl alone."""
