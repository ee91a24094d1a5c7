//! Every bound of the system, with its unit, in one place.
//!
//! A bound is either part of the contract with users (keys, values, contexts), a share of memory or disk that one
//! core may take, or a time after which something is given up. Bounds that depend on each other are asserted
//! against each other at compile time, at the end of the file.

use std::time::Duration;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;
pub const GIB: usize = 1 << 30;

// ---- keys and values -------------------------------------------------------------------------------------------
/// Bytes of a key: 1 to this many.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a value by default (setting `value_bytes_max`).
pub const VALUE_BYTES_MAX: usize = MIB;
/// Bytes that the setting `value_bytes_max` may be raised to.
pub const VALUE_BYTES_CEILING: usize = 4 * MIB;
/// Bytes of the content type stored with a raw value.
pub const MEDIA_TYPE_BYTES_MAX: usize = 128;
/// Bytes of a context in its text form, `vc:` included: as long as the context of any clock that is stored.
pub const CONTEXT_TEXT_BYTES_MAX: usize = 16 * KIB;
/// Entries of the clock that a client's write may make, and their bytes in the compact form: a context of these stays
/// within 8 KiB of text. A write that would make a longer one is refused.
pub const CLOCK_ENTRIES_MAX: usize = 2048;
pub const CLOCK_BYTES_MAX: usize = 11 * KIB / 2;
/// Share of these beyond which the node says that a key has too many writers, in percent.
pub const CLOCK_ALERT_PERCENT: usize = 50;
/// Entries of a clock that is written in the narrow form, with a fixed width and 16 bits of incarnation: earlier
/// versions take so many.
pub const NARROW_CLOCK_ENTRIES_MAX: usize = 680;
/// Entries of the clock of a context that has the narrow form: with more the compact one is much shorter.
pub const NARROW_CONTEXT_ENTRIES_MAX: usize = 16;
/// Single events beside the clock of a context that is accepted from outside; a write makes one.
pub const CONTEXT_DOTS_MAX: usize = 8;
/// The greatest incarnation of a node in one of its slices. One shift more must fit 64 bits.
pub const INCARNATION_MAX: u64 = (1 << 62) - 1;
/// A node's incarnations are at most so many times the starts that others know of, and [`STARTS_UNHEARD`] more: each
/// start draws [`FAR_INCARNATIONS_DRAWN`] at most, and what follows each other is far less. A context from outside
/// names no other.
pub const INCARNATIONS_EACH_START: u64 = 2 * FAR_INCARNATIONS_DRAWN;
pub const STARTS_UNHEARD: u64 = 64;
/// The greatest counter that a context from outside may name.
pub const COUNTER_MAX: u64 = u64::MAX >> 1;
/// Share of the incarnations beyond which the node says so, in percent.
pub const INCARNATION_ALERT_PERCENT: u64 = 50;
/// Concurrent values of one key, as far as the writer's coordinator knows; a write beyond gets 409.
pub const SIBLINGS_MAX: usize = 100;
/// Bytes of all concurrent values of one key together; a write beyond gets 409.
pub const SIBLINGS_BYTES_MAX: usize = 4 * MIB;
/// Superseded write ids remembered in a head, so that a late retry is known to be the same event.
pub const RECENT_WRITES_MAX: usize = 4;
/// Replicas of one key.
pub const REPLICAS_MAX: usize = 7;
/// Nodes that may have taken writes for one key without knowing of each other: its home replicas, and as many
/// stand-ins.
const COORDINATORS_MAX: usize = 2 * REPLICAS_MAX;
/// Concurrent values of one key when all that its coordinators took on their own comes together. Merging is never
/// refused below this.
pub const MERGED_SIBLINGS_MAX: usize = COORDINATORS_MAX * SIBLINGS_MAX;
/// Bytes of these.
pub const MERGED_SIBLINGS_BYTES_MAX: usize = COORDINATORS_MAX * SIBLINGS_BYTES_MAX;
/// Entries of a clock that comes from merging, and their bytes in the compact form. What is stored, sent and given out
/// as a context stays within these, and a context within these is taken.
pub const MERGED_CLOCK_ENTRIES_MAX: usize = 2 * CLOCK_ENTRIES_MAX;
pub const MERGED_CLOCK_BYTES_MAX: usize = 2 * CLOCK_BYTES_MAX;

// ---- tables ----------------------------------------------------------------------------------------------------
/// Bytes of a table's name.
pub const TABLE_NAME_BYTES_MAX: usize = 64;
/// Tables of a cluster. Two sides of a partition may make as many each.
pub const TABLES_MAX: usize = 256;
/// Names that tables of a cluster have had, those of dropped ones included: a marker of each stays, so that no disk
/// that is set back brings its table back. A name can be used again without end.
pub const TABLE_NAMES_MAX: usize = 2048;
/// Names that are taken from other nodes: both sides of a partition may have used so many.
pub const TABLE_ENTRIES_MAX: usize = 2 * TABLE_NAMES_MAX;
/// Records that a core looks at to count the keys of a table that is made or dropped.
pub const KEYS_COUNTED_MAX: usize = 50_000;
/// How long it does; then it says no number.
pub const KEYS_COUNTED_WITHIN: Duration = Duration::from_secs(1);
/// How far a stamp from another node may be ahead of the own wall clock; beyond, the write is refused and counted.
pub const SKEW_MAX: Duration = Duration::from_millis(500);
/// Clocks of other nodes that a node knows; how long such knowledge is preferred to older; and how long an answer may
/// take that says the time.
pub const CLOCKS_KEPT: usize = 64;
pub const CLOCK_FRESH: Duration = Duration::from_secs(60);
pub const CLOCK_ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// How long a node that has just started lets writes wait that need a sound clock, until another has said the time.
pub const CLOCK_WAIT: Duration = Duration::from_secs(1);
/// How far ahead a slice's ceiling of stamps is durably raised.
pub const STAMP_LEAD: Duration = Duration::from_secs(10);
/// Stamps of a generation that a shard keeps in memory; it keeps two.
pub const STAMPS_KEPT: usize = 32 * 1024;
/// Requests and messages of a shard that wait for a table to be dropped; more are refused.
pub const HELD_MAX: usize = 1024;
/// A shard that may have forgotten its tables asks the other cores of its node and so many nodes, this far apart.
pub const TABLES_ASKED_EVERY: Duration = Duration::from_millis(100);
pub const TABLES_ASKED_NODES: usize = 3;

// ---- ring ------------------------------------------------------------------------------------------------------
/// Virtual nodes of a node by default.
pub const VNODES: usize = 256;
/// Virtual nodes of a node that are accepted from a peer.
pub const VNODES_MAX: usize = 4096;
/// Starts that a node may say it has had: far from where a number ends, and beyond what any node lives to see.
pub const GENERATION_MAX: u64 = 1 << 40;
/// Members of a cluster.
pub const MEMBERS_MAX: usize = 1024;
/// Nodes of other clusters that a node remembers to have met, and shows.
pub const STRANGERS_TOLD_MAX: usize = 16;
/// Shards of a node.
pub const SHARDS_MAX: usize = 256;
/// Nanoseconds between two stamps that one core of a node gives out at least: each core has its place within them.
pub const STAMP_CORES: u64 = SHARDS_MAX as u64;
/// Slices of a node: the least that a data directory is made with.
pub const SLICES_MIN: usize = 64;
/// Slices for each CPU, when that is more than [`SLICES_MIN`].
pub const SLICES_PER_CPU: usize = 8;
/// Slices of a node at most.
pub const SLICES_MAX: usize = 2048;

// ---- time ------------------------------------------------------------------------------------------------------
/// How long a client's request may take unless it says otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline that a client may ask for.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// A replica that has not answered for so long is replaced by another (write: a hint; read: the next replica).
pub const REPLICA_LATE: Duration = Duration::from_millis(300);
/// A forwarded request goes to another replica when the first has been silent for so long.
pub const FORWARD_LATE: Duration = Duration::from_millis(1_200);
/// A node that lets requests wait and says nothing is tried again after so long, doubled up to [`SILENCE_TRIAL_MAX`].
pub const SILENCE_TRIAL_MIN: Duration = Duration::from_secs(1);
pub const SILENCE_TRIAL_MAX: Duration = Duration::from_secs(8);
/// Losses of a node after which it must stay for a while before it is trusted again.
pub const FLAPS_FREE: u32 = 3;
/// That while, doubled with each further loss up to [`FLAP_DAMPING_MAX`].
pub const FLAP_DAMPING_MIN: Duration = Duration::from_millis(500);
pub const FLAP_DAMPING_MAX: Duration = Duration::from_secs(8);
/// A loss is forgiven for each such time that a node stays.
pub const FLAP_FORGIVEN_AFTER: Duration = Duration::from_secs(15);
/// A read is hedged when it takes longer than most, but not before this.
pub const HEDGE_DELAY_MIN: Duration = Duration::from_millis(1);
/// Reads that may be hedged, in percent.
pub const HEDGE_PERCENT: u64 = 2;
/// Hedges that a quiet time may save up.
pub const HEDGES_SAVED_MAX: u64 = 20;
/// Reads before anything is known of how long they take.
pub const HEDGE_SAMPLES_MIN: u32 = 256;
/// Background writes (hint replay, read repair) are given up after so long and tried again later.
pub const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// Gossip rounds are this far apart.
pub const GOSSIP_INTERVAL: Duration = Duration::from_secs(1);
/// Silence of a member's heartbeat after which it is suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(5);
/// A member is shown as down after so many times the silence that makes it suspect.
pub const DOWN_AFTER_SUSPICIONS: u32 = 6;
/// Silence of a member's heartbeat after which it is shown as down.
pub const DOWN_AFTER: Duration = Duration::from_secs(SUSPECT_AFTER.as_secs() * DOWN_AFTER_SUSPICIONS as u64);
/// A stopping node answers those who come late for so long, unless nobody is connected to it.
pub const DRAIN: Duration = Duration::from_secs(5);
/// A stopping node that nobody has been connected to for so long need not wait for late comers.
pub const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// The most of it that can be set.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);
/// What a stopping node has in hand after the drain is answered within this time, or not at all.
pub const STOP_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The last words and the closing of files take at most so long; then the process ends without them.
pub const STOP_ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Time between two events of a shard after which others are not blamed for their silence at once: it may have stood
/// still.
pub const PAUSE_NOTICED: Duration = Duration::from_secs(1);
/// Every so many gossip rounds a down member or a seed is tried as well, so that partitions heal.
pub const GOSSIP_DOWN_EVERY: u64 = 5;
/// Bytes of a message of news between members (one larger entry still fits); more go in the next.
pub const NEWS_BYTES: usize = 256 * KIB;
/// A node that has started again waits so long for all members to say what they remember of it. Who is silent until
/// then may remember more than its disk does.
pub const RETURN_PATIENCE: Duration = Duration::from_millis(1_500);
/// A node that forms a cluster of its own, and was not told outright to, listens so long before it serves: a member of
/// another cluster may know it by its address. Longer than a member waits before it tries a lost one again.
pub const LISTEN_FIRST: Duration = Duration::from_millis(1_200);
/// Pause between two looks at the hints owed to members that are back.
pub const HINT_INTERVAL: Duration = Duration::from_millis(500);
/// A peer connection is tried again after this long, doubled up to [`RECONNECT_MAX`].
pub const RECONNECT_MIN: Duration = Duration::from_millis(50);
pub const RECONNECT_MAX: Duration = Duration::from_secs(1);

// ---- per core: work in hand ------------------------------------------------------------------------------------
/// Client requests without an answer yet that a shard coordinates at once; more get 429. A queue that takes longer than
/// [`REQUEST_TIMEOUT`] to serve does work for askers who have gone, and one that does not fit the caches makes each
/// request dearer: many times what a batch of the log holds is enough.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 512;
/// Requests that have their answer and wait for slower replicas; beyond it new ones get 429. A silent node is waited
/// for [`REPLICA_LATE`] by all that a core does meanwhile.
pub const REQUESTS_ANSWERED_MAX: usize = 16 * 1024;
/// Bytes of values in requests that a shard coordinates at once, those that reads have got included; more get 429.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 128 * MIB;
/// Operations that wait for one key's latch; more get 429.
pub const LATCH_WAITERS_MAX: usize = 1024;
/// Events that a driver handles before it looks at its engine again.
pub const EVENTS_PER_TURN: usize = 256;
/// Messages from other nodes that wait in a shard's inbox; more are dropped (their senders' deadlines notice).
pub const INBOX_MESSAGES_MAX: usize = 64 * 1024;
/// Bytes of those messages; more are dropped.
pub const INBOX_BYTES_MAX: usize = 128 * MIB;
/// Reads for other shards that a shard has in hand; more are refused.
pub const FETCHES_MAX: usize = 32 * 1024;
/// Damaged records that a shard puts together again at once; the others wait until somebody meets them again.
pub const REBUILDS_MAX: usize = 32;
/// Bytes of states from other replicas that a shard has in hand; more are refused.
pub const REPLICA_BYTES_IN_FLIGHT_MAX: usize = 256 * MIB;
/// Bytes queued towards one peer core, for long frames and for others; more are dropped and the peer counts as late.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 * MIB;
/// Messages queued from one core of a node to another.
pub const MESH_QUEUE_MESSAGES: usize = 1024;
/// Dots that are leased durably at once. A crash skips what is left of a block.
pub const DOT_LEASE: u64 = 1 << 20;
/// Incarnations left out for each start of the node whose lease of a slice is lost.
pub const INCARNATIONS_OF_START: u64 = 4;
/// Incarnations left out after the one that a version names and the slice has forgotten: later starts may have taken
/// some.
pub const FORGOTTEN_INCARNATIONS: u64 = 64;
/// As many more at most, at random: a node may forget more than once.
pub const FORGOTTEN_INCARNATIONS_DRAWN: u64 = 1 << 20;
/// A version that names an incarnation farther ahead than this tells of another copy of the disk, or is forged: then
/// the next one is not taken after it, but anywhere within [`FAR_INCARNATIONS_DRAWN`].
pub const NEAR_INCARNATIONS: u64 = 1 << 24;
/// Incarnations among which one is drawn when the disk is a copy, or when others know one that is far ahead.
pub const FAR_INCARNATIONS_DRAWN: u64 = 1 << 40;
/// Starts left out when the data directory is an older state or a copy; as many more at most, at random.
pub const LOST_STARTS: u64 = 256;
/// Incarnations left out when the last lease of a slice may be lost.
pub const LOST_INCARNATIONS: u64 = 1024;

// ---- hints -----------------------------------------------------------------------------------------------------
/// Hinted bytes that a shard keeps for absent replicas; at the bound the hint is dropped and its range marked.
pub const HINT_BYTES_MAX: u64 = 4 * GIB as u64;
/// Hints of one owner in replay at once: at the start, and at most.
pub const HINT_WINDOW_START: usize = 4;
pub const HINT_WINDOW: usize = 32;
/// An owner that takes so many times longer to acknowledge a replayed hint than it can, and this on top, gets fewer at
/// once.
pub const HINT_ANSWER_TIMES: u32 = 2;
pub const HINT_ANSWER_SLACK: Duration = Duration::from_millis(1);
/// The replay to an owner that is back begins within this, at random.
pub const HINT_JITTER_MAX: Duration = Duration::from_millis(400);
/// Marked ranges that could not be gone through as a whole are tried again after so long.
pub const SWEEP_PAUSE: Duration = Duration::from_secs(10);
/// Hints read by one scan.
pub const HINT_SCAN: usize = 64;

// ---- frames ----------------------------------------------------------------------------------------------------
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Bytes of a frame before the HELLO exchange.
pub const FRAME_BYTES_BEFORE_HELLO: usize = 4 * KIB;
/// Bytes of a frame: the siblings of one key, merged, their head and the flatbuffer.
pub const FRAME_BYTES_MAX: usize = MERGED_SIBLINGS_BYTES_MAX + MIB;
/// Bytes of a frame that a server takes from a client: one value, a context, a key.
pub const REQUEST_FRAME_BYTES_MAX: usize = VALUE_BYTES_CEILING + MIB;
/// Tables in one flatbuffer, and their depth.
pub const FLATBUFFER_TABLES_MAX: usize = 16 * 1024;
pub const FLATBUFFER_DEPTH_MAX: usize = 8;
/// A frame longer than this is sent after those that are not, and between nodes over a connection of its own.
pub const LONG_FRAME_BYTES: usize = 16 * KIB;
/// Values in one frame.
pub const FRAME_VALUES_MAX: usize = MERGED_SIBLINGS_MAX;
/// Connections that a shard serves; more are told so and closed.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Open files without which a node does not start: listening ports, rings, directories, the log and tables of small
/// stores, and a few connections; and as many more for each shard.
pub const OPEN_FILES_MIN: u64 = 64;
pub const OPEN_FILES_PER_SHARD_MIN: u64 = 32;
/// Open files that are kept for the log and the tables of a node when connections share out the rest.
pub const OPEN_FILES_STORAGE: u64 = 4096;
/// Connections to a core of nodes that are no members, or not yet known to it as members; more are closed.
pub const GUESTS_MAX: usize = 64;
/// And of those that come from one address.
pub const GUESTS_PER_SOURCE: usize = 16;
/// The gossip of such a node is answered for so long after its last connection.
pub const GUEST_REMEMBERED: Duration = Duration::from_secs(10);
/// Connections beyond these that are asked for nothing but whether the node lives.
pub const CONNECTIONS_RESERVED: usize = 32;
/// Bytes of unfinished frames and bodies, and of answers that are not sent yet, that a core holds for its connections;
/// at it those go that have been held up for [`CONNECTION_HELD_UP`], the longest first.
pub const CONNECTION_BYTES_MAX: usize = 96 * MIB;
/// At so many bytes anybody may go.
pub const CONNECTION_BYTES_HARD: usize = 2 * CONNECTION_BYTES_MAX;
pub const CONNECTION_HELD_UP: Duration = Duration::from_secs(1);
/// A connection that has been silent for so long is asked whether its other side is still there, each so often and at
/// most so many times without an answer.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
pub const KEEPALIVE_PROBES: u32 = 3;
/// A kept HTTP connection without a request is closed after so long; longer than what balancers keep theirs for.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(120);
/// A connection of the client protocol without a request is closed after so long.
pub const CLIENT_IDLE_MAX: Duration = Duration::from_secs(3600);
/// A connection that has not finished its HELLO after so long is closed.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection in the middle of a frame or an HTTP request that sends nothing for so long is closed.
pub const STALLED_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection whose reader takes longer for what is sent to it at once, 256 KiB at most, is closed.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Requests in flight on one client connection; reading pauses at the bound.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 1024;
/// Bytes of an HTTP head.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 * KIB;
/// Headers of an HTTP request.
pub const HTTP_HEADERS_MAX: usize = 100;
/// Bytes of a socket's receive buffer, taken only while a connection is active.
pub const RECEIVE_BUFFER_BYTES: usize = 64 * KIB;

// ---- engine ----------------------------------------------------------------------------------------------------
/// The unit of O_DIRECT: offsets and lengths are multiples of it.
pub const PAGE: usize = 4096;
/// Bytes of a value-log segment.
pub const SEGMENT_BYTES: usize = 128 * MIB;
/// A segment takes this part of what is live, within [`SEGMENT_BYTES_USUAL_MIN`] and [`SEGMENT_BYTES`].
pub const SEGMENTS_OF_LIVE: u64 = 64;
/// Bytes of a segment while little is live, unless the file system is small.
pub const SEGMENT_BYTES_USUAL_MIN: usize = 6 * MIB;
/// Files of collected segments that a core keeps for reuse.
pub const FREE_SEGMENTS: usize = 2;
/// Values shorter than this stay in the record, beside the head.
pub const INLINE_VALUE_BYTES: usize = KIB;
/// Bytes of a batch of the log after which it is sealed (one larger record still fits).
pub const BATCH_BYTES: usize = MIB;
/// Records of a batch of the log after which it is sealed.
pub const BATCH_RECORDS: usize = 64;
/// Damaged places that one core's engine names; more are only counted.
pub const DAMAGE_PLACES_MAX: usize = 1024;
/// Batches of the log in flight.
pub const BATCHES_IN_FLIGHT: usize = 2;
/// How long a write of `durability = interval` may wait for its sync.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before space is tried again where a file system has bytes left and refused all the same.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// When a core's log has rested for about so long, an empty batch proves that the last ones were whole.
pub const PROOF_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of writes that wait for the log of one core; more wait outside.
pub const LOG_QUEUE_BYTES: usize = 64 * MIB;
/// Bytes of all memtables of a core, active and sealed.
pub const MEMTABLE_BYTES: usize = 32 * MIB;
/// Bytes of log after which a slice that pins its oldest part is flushed: bounds recovery time.
pub const LOG_REPLAY_BYTES: usize = 512 * MIB;
/// Bytes of an SSTable block before it is closed.
pub const BLOCK_BYTES: usize = 4 * KIB;
/// Bytes of an SSTable fragment that compaction aims at.
pub const TABLE_BYTES: usize = 4 * MIB;
/// Bytes of a table that are written at once.
pub const TABLE_WRITE_BYTES: usize = 256 * KIB;
/// Bytes of a table that a cursor reads at once (one larger block still fits).
pub const TABLE_READ_AHEAD_BYTES: usize = 128 * KIB;
/// Bytes that the first read of a scan takes from a table; doubled up to [`TABLE_READ_AHEAD_BYTES`].
pub const TABLE_READ_FIRST_BYTES: usize = 16 * KIB;
/// Bytes that [`BLOCK_BYTES`] may be raised to: places within a block are 16 bits wide.
pub const BLOCK_BYTES_MAX: usize = 32 * KIB;
/// Levels of a slice, level 0 included.
pub const LEVELS: usize = 7;
/// Tables of level 0 in one slice that start a compaction.
pub const LEVEL0_TABLES: usize = 4;
/// Times [`LEVEL0_TABLES`] at which level 0 is compacted however small it is beside level 1.
pub const LEVEL0_PATIENCE: usize = 3;
/// Share of delete records that makes a table worth compacting by itself, in percent.
pub const TABLE_DELETES_PERCENT: u64 = 30;
/// Growth from one level to the next.
pub const LEVEL_FACTOR: usize = 10;
/// Bits of filter for each key: about 1 % false positives.
pub const FILTER_BITS_PER_KEY: usize = 10;
/// Bytes of table blocks that a core caches.
pub const BLOCK_CACHE_BYTES: usize = 32 * MIB;
/// Bytes of values that a core caches.
pub const VALUE_CACHE_BYTES: usize = 64 * MIB;
/// Bytes of filters and indexes of all tables of a core, some 300 M keys' worth; beyond, the deepest tables do without
/// filters.
pub const TABLE_MEMORY_BYTES: usize = 512 * MIB;
/// Share of dead bytes in a sealed segment below which it is never worth collecting, in percent.
pub const SEGMENT_DEAD_PERCENT: u64 = 10;
/// Bytes of segments in use, in percent of what is live, at which collection begins; [`SPACE_SEGMENTS`] come on top.
pub const SPACE_PERCENT_START: u64 = 113;
/// At which collection goes as fast as it can; at as much again more, writes go at the pace of collection.
pub const SPACE_PERCENT_MAX: u64 = 121;
/// Segments that do not count as space in use: those that are being filled, and those in reserve.
pub const SPACE_SEGMENTS: u64 = 2;
/// Share of a file system in use at which a node turns read-only, in percent.
pub const DISK_FULL_PERCENT: u64 = 95;
/// Seconds of recent writes that background work may be behind before the node says so.
pub const BACKLOG_ALERT: Duration = Duration::from_secs(30);
/// Bytes a second that background work does at least: a backlog is reckoned in seconds of this rate or a greater one.
pub const BACKLOG_RATE_MIN: u64 = 4 * MIB as u64;
/// Files that a core's reserve of space consists of.
pub const RESERVE_PIECES: usize = 6;
/// How many of them the log may have for deletes; the others are for flush and collection, and the last for a start.
pub const RESERVE_PIECES_LOG: usize = 2;
/// Bytes of one of them; less on a small file system.
pub const RESERVE_PIECE_BYTES_MAX: usize = 2 * MIB;
/// Shares of a file system that segments, and memtables with the log behind them, take at most: on a small one they are
/// smaller.
pub const SEGMENT_SHARE: u64 = 32;
pub const REPLAY_SHARE: u64 = 16;
/// Bytes by which a segment grows when space is short.
pub const SHORT_STEP_BYTES: usize = 64 * KIB;
/// Bytes below which these do not shrink.
pub const SEGMENT_BYTES_MIN: usize = 256 * KIB;
/// Keys returned by one scan at most.
pub const SCAN_KEYS_MAX: usize = 4096;

const _: () = {
    assert!(VALUE_BYTES_MAX <= VALUE_BYTES_CEILING);
    assert!(VALUE_BYTES_CEILING <= SIBLINGS_BYTES_MAX);
    // A dot has 25 bytes at most, and 16 are around: version, key check, count of dots, checksum, prefix.
    assert!(CONTEXT_TEXT_BYTES_MAX * 3 / 4 >= MERGED_CLOCK_BYTES_MAX + CONTEXT_DOTS_MAX * 25 + 16);
    assert!(8 * KIB * 3 / 4 >= CLOCK_BYTES_MAX + CONTEXT_DOTS_MAX * 25 + 16);
    assert!(CONTEXT_TEXT_BYTES_MAX * 2 < HTTP_HEAD_BYTES_MAX && NARROW_CONTEXT_ENTRIES_MAX <= NARROW_CLOCK_ENTRIES_MAX);
    // Clocks of the narrow form that earlier versions have stored.
    assert!(MERGED_CLOCK_BYTES_MAX >= NARROW_CLOCK_ENTRIES_MAX * 16);
    assert!(NARROW_CLOCK_ENTRIES_MAX <= MERGED_CLOCK_ENTRIES_MAX && MERGED_CLOCK_ENTRIES_MAX < u16::MAX as usize);
    assert!(INCARNATION_MAX < u64::MAX >> 1 && FORGOTTEN_INCARNATIONS_DRAWN < NEAR_INCARNATIONS);
    assert!(NEAR_INCARNATIONS < FAR_INCARNATIONS_DRAWN && FAR_INCARNATIONS_DRAWN < INCARNATION_MAX >> 16);
    assert!(FRAME_BYTES_MAX < u32::MAX as usize && NEWS_BYTES + 16 * VNODES_MAX < FRAME_BYTES_MAX);
    assert!(SLICES_MAX >= SHARDS_MAX * SLICES_PER_CPU);
    assert!(SEGMENT_BYTES.is_multiple_of(PAGE) && BATCH_BYTES.is_multiple_of(PAGE));
    assert!(SEGMENT_BYTES_MIN.is_multiple_of(PAGE) && SEGMENT_BYTES_MIN <= SEGMENT_BYTES);
    assert!(SEGMENT_BYTES_USUAL_MIN.is_multiple_of(PAGE) && SEGMENT_BYTES_USUAL_MIN <= SEGMENT_BYTES);
    assert!(
        RESERVE_PIECES_LOG + 2 <= RESERVE_PIECES && RESERVE_PIECES < 10 && RESERVE_PIECE_BYTES_MAX.is_multiple_of(PAGE)
    );
    assert!(FRAME_BYTES_MAX < SEGMENT_BYTES && FRAME_BYTES_MAX < PEER_QUEUE_BYTES_MAX);
    assert!(REQUEST_FRAME_BYTES_MAX <= FRAME_BYTES_MAX && MERGED_SIBLINGS_MAX < u16::MAX as usize);
    assert!(TABLE_WRITE_BYTES.is_multiple_of(PAGE) && TABLE_READ_AHEAD_BYTES.is_multiple_of(PAGE));
    assert!(TABLE_READ_FIRST_BYTES.is_multiple_of(PAGE) && TABLE_READ_FIRST_BYTES <= TABLE_READ_AHEAD_BYTES);
    assert!(
        BLOCK_BYTES <= BLOCK_BYTES_MAX && BLOCK_BYTES_MAX <= TABLE_WRITE_BYTES && BLOCK_BYTES_MAX < u16::MAX as usize
    );
    assert!(VNODES <= VNODES_MAX && VNODES >= SLICES_MIN);
    assert!(REQUEST_TIMEOUT.as_nanos() <= REQUEST_TIMEOUT_MAX.as_nanos());
    assert!(REPLICA_LATE.as_nanos() < FORWARD_LATE.as_nanos());
    assert!(
        REPLICA_LATE.as_nanos() <= SILENCE_TRIAL_MIN.as_nanos() && HEDGE_DELAY_MIN.as_nanos() < REPLICA_LATE.as_nanos()
    );
    assert!(HINT_WINDOW_START <= HINT_WINDOW && HINT_JITTER_MAX.as_nanos() < HINT_INTERVAL.as_nanos());
    assert!(FLAP_DAMPING_MAX.as_nanos() < FLAP_FORGIVEN_AFTER.as_nanos());
    assert!(SPACE_PERCENT_START > 100 && SPACE_PERCENT_START < SPACE_PERCENT_MAX);
    assert!(FRAME_BYTES_MAX < CONNECTION_BYTES_MAX && STALLED_TIMEOUT.as_nanos() < SEND_TIMEOUT.as_nanos());
    assert!(SUSPECT_AFTER.as_nanos() < DOWN_AFTER.as_nanos() && LISTEN_FIRST.as_nanos() > RECONNECT_MAX.as_nanos());
};
