//! THE STAIRS: the one loop of a core, generic over both worlds.

pub mod core;
pub mod identity;
pub mod world;
