//! Tables and compaction over the virtual disk, against maps.

mod table_suite {
    mod compaction;
    mod table;
}
