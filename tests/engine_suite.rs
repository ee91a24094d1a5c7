//! The engine against a map, on a disk that forgets, breaks and stops.

#[path = "engine_suite/rig.rs"]
mod rig;

#[path = "engine_suite/background.rs"]
mod background;
#[path = "engine_suite/corruption.rs"]
mod corruption;
#[path = "engine_suite/counters.rs"]
mod counters;
#[path = "engine_suite/crash.rs"]
mod crash;
#[path = "engine_suite/drops.rs"]
mod drops;
#[path = "engine_suite/errors.rs"]
mod errors;
#[path = "engine_suite/folds.rs"]
mod folds;
#[path = "engine_suite/interval.rs"]
mod interval;
#[path = "engine_suite/log_reader.rs"]
mod log_reader;
#[path = "engine_suite/model.rs"]
mod model;
#[path = "engine_suite/node_files.rs"]
mod node_files;
#[path = "engine_suite/older_forms.rs"]
mod older_forms;
#[path = "engine_suite/shards.rs"]
mod shards;
