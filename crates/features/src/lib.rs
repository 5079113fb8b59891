//! Nothing but dependencies: every room names this one, so that each crate of the registry is built
//! with one set of features, whether one room is built or all of them. Without it, a build with
//! `-p ROOM` compiles half of the tensor library again. `cargo xtask check` tests that it does not.
