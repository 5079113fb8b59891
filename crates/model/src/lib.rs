//! The model family: recipe, parameters, routers, recursion, caches, cost. Knows no file, no clock, no text.
