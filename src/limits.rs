//! Every bound of the system, with its unit, in one place.
//!
//! A bound is either part of the contract with users (keys, values, contexts), a share of memory or disk that one
//! core may take, or a time after which something is given up. Bounds that depend on each other are asserted
//! against each other at compile time, at the end of the file.
//!
//! Each says what it was chosen from, and what it costs in memory or time where that is not plain from its value.

use std::time::Duration;

/// Bytes of a kibibyte.
pub const KIB: usize = 1 << 10;
/// Bytes of a mebibyte.
pub const MIB: usize = 1 << 20;
/// Bytes of a gibibyte.
pub const GIB: usize = 1 << 30;

// ---- keys and values -------------------------------------------------------------------------------------------
/// Bytes of a key: 1 to this many. Keys lie in memtables and in the blocks and indexes of tables, so a long one costs
/// memory where a long value does not; a block ([`BLOCK_BYTES`]) still holds a few of this length.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a value by default (setting `value_bytes_max`). A value is held in memory as a whole by each node that it
/// passes.
pub const VALUE_BYTES_MAX: usize = MIB;
/// Bytes that the setting `value_bytes_max` may be raised to: one value may then be as large as all siblings of a key
/// together, [`SIBLINGS_BYTES_MAX`].
pub const VALUE_BYTES_CEILING: usize = 4 * MIB;
/// Bytes of the content type stored with a raw value. It is part of the head, which each comparison of replicas reads;
/// types in use are shorter.
pub const MEDIA_TYPE_BYTES_MAX: usize = 128;
/// Bytes of a context in its text form, `vc:` included. It holds the context of any clock that may be stored
/// ([`MERGED_CLOCK_BYTES_MAX`]), and two of them fit an HTTP head.
pub const CONTEXT_TEXT_BYTES_MAX: usize = 16 * KIB;
/// Entries of the clock that a client's write may make; a write that would make a longer one is refused. Each node in
/// each incarnation that wrote the key has one, so this is some hundred crashes of each of its coordinators. 48 KiB in
/// memory.
pub const CLOCK_ENTRIES_MAX: usize = 2048;
/// Bytes of such a clock in the compact form. The context of one, in text, stays within 8 KiB: the length of header
/// lines that proxies usually take.
pub const CLOCK_BYTES_MAX: usize = 11 * KIB / 2;
/// Percent of [`CLOCK_ENTRIES_MAX`] and [`CLOCK_BYTES_MAX`] beyond which the node says that a key has too many writers,
/// while writes still succeed.
pub const CLOCK_ALERT_PERCENT: usize = 50;
/// Entries of a clock that is written in the narrow form, with a fixed width and 16 bits of incarnation: earlier
/// versions of Dynarc take no more.
pub const NARROW_CLOCK_ENTRIES_MAX: usize = 680;
/// Entries of the clock of a context that is given out in the narrow form, which earlier versions read; with more the
/// compact form is much shorter.
pub const NARROW_CONTEXT_ENTRIES_MAX: usize = 16;
/// Single events beside the clock of a context that is accepted from outside. A write adds one, and each replica looks
/// them up one by one; 25 bytes each at most.
pub const CONTEXT_DOTS_MAX: usize = 8;
/// The greatest incarnation of a node in one of its slices. The compact form shifts it by one bit more, and that must
/// fit 64 bits.
pub const INCARNATION_MAX: u64 = (1 << 62) - 1;
/// Incarnations that a start of a node may use up, for judging contexts from outside. A start draws one among
/// [`FAR_INCARNATIONS_DRAWN`] at most, and all that follow each other are far fewer: so twice that.
pub const INCARNATIONS_EACH_START: u64 = 2 * FAR_INCARNATIONS_DRAWN;
/// Starts of a node that others may not have heard of yet. A context that names an incarnation beyond what the known
/// starts and these can have used is refused as forged.
pub const STARTS_UNHEARD: u64 = 64;
/// The greatest counter that a context from outside may name. Half of the range is left, so that no forged context can
/// use up the numbers of a live node.
pub const COUNTER_MAX: u64 = u64::MAX >> 1;
/// Percent of [`INCARNATION_MAX`] beyond which the node says so: with none left it could take no more writes.
pub const INCARNATION_ALERT_PERCENT: u64 = 50;
/// Concurrent values of one key, as far as the writer's coordinator knows; a write beyond gets 409, and nothing is
/// lost. Only clients that write without reading come near it.
pub const SIBLINGS_MAX: usize = 100;
/// Bytes of all concurrent values of one key together; a write beyond gets 409. Siblings are read, merged and rewritten
/// together, so a write to such a key may move this much at each replica.
pub const SIBLINGS_BYTES_MAX: usize = 4 * MIB;
/// Superseded write ids remembered in a head, so that a late retry is known to be the same event. 29 bytes each at most
/// in every stored and sent head of the key.
pub const RECENT_WRITES_MAX: usize = 4;
/// Replicas of one key. A write goes to all of them at once; more than seven would cost traffic and add little to what
/// may fail.
pub const REPLICAS_MAX: usize = 7;
/// Nodes that may have taken writes for one key without knowing of each other: its home replicas, and as many
/// stand-ins.
const COORDINATORS_MAX: usize = 2 * REPLICAS_MAX;
/// Concurrent values of one key when all that its coordinators took apart from each other comes together: each kept to
/// [`SIBLINGS_MAX`]. Merging is never refused below this.
pub const MERGED_SIBLINGS_MAX: usize = COORDINATORS_MAX * SIBLINGS_MAX;
/// Bytes of these values: 56 MiB, the longest state that a node must hold and send in one piece.
pub const MERGED_SIBLINGS_BYTES_MAX: usize = COORDINATORS_MAX * SIBLINGS_BYTES_MAX;
/// Entries of a clock that comes from merging: twice what one writer may make. What is stored, sent and given out as a
/// context stays within this, and what is within it is always taken.
pub const MERGED_CLOCK_ENTRIES_MAX: usize = 2 * CLOCK_ENTRIES_MAX;
/// Bytes of such a clock in the compact form.
pub const MERGED_CLOCK_BYTES_MAX: usize = 2 * CLOCK_BYTES_MAX;

// ---- tables ----------------------------------------------------------------------------------------------------
/// Bytes of a table's name. It is a prefix of every key of the table, in memory and on disk.
pub const TABLE_NAME_BYTES_MAX: usize = 64;
/// Tables of a cluster. Two sides of a partition may make as many each. Every node keeps all of them in memory and in
/// gossip.
pub const TABLES_MAX: usize = 256;
/// Names that tables of a cluster have had, those of dropped ones included: a marker of each stays, so that no disk
/// that is set back brings its table back. A name can be used again without end.
pub const TABLE_NAMES_MAX: usize = 2048;
/// Names that are taken from other nodes: both sides of a partition may have used [`TABLE_NAMES_MAX`].
pub const TABLE_ENTRIES_MAX: usize = 2 * TABLE_NAMES_MAX;
/// Records that a core looks at to count the keys of a table that is made or dropped, for what the client is told.
pub const KEYS_COUNTED_MAX: usize = 50_000;
/// Time that this counting may take; after it the answer names no number.
pub const KEYS_COUNTED_WITHIN: Duration = Duration::from_secs(1);
/// Time that a stamp from another node may be ahead of the own wall clock; beyond, the write is refused and counted. It
/// is far above what synchronised clocks differ by, and bounds how long a wrong clock's writes can win.
pub const SKEW_MAX: Duration = Duration::from_millis(500);
/// Clocks of other nodes that a shard remembers, those measured last: far more than it takes to see whose is wrong.
pub const CLOCKS_KEPT: usize = 64;
/// Time for which a measured clock is preferred to older measures.
pub const CLOCK_FRESH: Duration = Duration::from_secs(60);
/// Time between two questions for the time to members that were seen to be there: short beside [`CLOCK_WAIT`], and long
/// beside a round trip, so that two nodes which ask each other back do not go on doing so.
pub const CLOCK_ASK_PAUSE: Duration = Duration::from_millis(50);
/// Time that an answer may take that says the time; from a slower one the clock cannot be told within useful bounds.
pub const CLOCK_ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// Time that a node which has just started lets writes wait that need a sound clock, until another node has said the
/// time; other requests do not wait.
pub const CLOCK_WAIT: Duration = Duration::from_secs(1);
/// Time by which a slice's ceiling of stamps is durably raised ahead: one small record a slice each time. After a
/// crash, until the clock has passed the ceiling, writes are compared with the records that they replace, which costs
/// each a read.
pub const STAMP_LEAD: Duration = Duration::from_secs(10);
/// Stamps of a generation that a shard keeps in memory, by the key's token, so that most writes of a table where the
/// last write wins need no read; it keeps two generations. Some 3 MiB a core.
pub const STAMPS_KEPT: usize = 32 * 1024;
/// Requests and messages of a shard that wait for a table to be dropped; more are refused.
pub const HELD_MAX: usize = 1024;
/// Time between two questions of a shard that may have forgotten its tables; it asks before it serves.
pub const TABLES_ASKED_EVERY: Duration = Duration::from_millis(100);
/// Nodes that such a shard asks at a time, beside the other cores of its own node.
pub const TABLES_ASKED_NODES: usize = 3;

// ---- ring ------------------------------------------------------------------------------------------------------
/// Virtual nodes of a node by default. The share of each node then differs from the mean by about 6 % (1/sqrt 256); a
/// member entry takes 2 KiB.
pub const VNODES: usize = 256;
/// Virtual nodes of a node that are accepted from a peer: 32 KiB of an entry of the member list.
pub const VNODES_MAX: usize = 4096;
/// Starts that a node may say it has had: far from where a number ends, and beyond what any node lives to see.
pub const GENERATION_MAX: u64 = 1 << 40;
/// Members of a cluster. Each node keeps the whole list in memory and in one file.
pub const MEMBERS_MAX: usize = 1024;
/// Nodes of other clusters that a node remembers to have met, and shows: enough to see what is wrong.
pub const STRANGERS_TOLD_MAX: usize = 16;
/// Shards of a node, one a core at most.
pub const SHARDS_MAX: usize = 256;
/// Nanoseconds between two stamps that one core of a node gives out at least: each core has its own place within them,
/// so that no two cores give out the same stamp.
pub const STAMP_CORES: u64 = SHARDS_MAX as u64;
/// Slices of a node: the least that a data directory is made with. Slices are what is dealt to cores, so the data of
/// one serves for any number of cores up to this.
pub const SLICES_MIN: usize = 64;
/// Slices for each CPU, when that is more than [`SLICES_MIN`]. Each slice has its own memtable, tables and manifest.
pub const SLICES_PER_CPU: usize = 8;
/// Slices of a node at most: [`SLICES_PER_CPU`] for each of [`SHARDS_MAX`] shards.
pub const SLICES_MAX: usize = 2048;

// ---- time ------------------------------------------------------------------------------------------------------
/// Time that a client's request may take unless it says otherwise. It leaves room for a replica that is late and
/// another one that takes its place, several times.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest deadline that a client may ask for. A request that waits holds its place among
/// [`REQUESTS_IN_FLIGHT_MAX`] for so long.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Time after which a replica that has not answered is replaced by another (write: a hint; read: the next replica). It
/// is far above what an answer usually takes (milliseconds), and what a request to a silent node costs its client.
pub const REPLICA_LATE: Duration = Duration::from_millis(300);
/// Time after which a forwarded request goes to another replica, when the first has been silent. The first one needs up
/// to [`REPLICA_LATE`] for a silent replica of its own, and must have time to do without it.
pub const FORWARD_LATE: Duration = Duration::from_millis(1_200);
/// Time after which whoever has been passed a request and has not answered is asked for a sign of life. It may wait for
/// a third node and have nothing to say meanwhile; its answer is less than [`REPLICA_LATE`] old when it would count as
/// silent. The price is one short message for each request that takes so long.
pub const FORWARD_PROBED: Duration = Duration::from_millis(1_000);
/// Pause before a node that lets requests wait and says nothing is tried again; it is doubled up to
/// [`SILENCE_TRIAL_MAX`]. A trial may make one request late by [`REPLICA_LATE`].
pub const SILENCE_TRIAL_MIN: Duration = Duration::from_secs(1);
/// The longest of these pauses, and so the longest time that a node which answers again stays unused.
pub const SILENCE_TRIAL_MAX: Duration = Duration::from_secs(8);
/// Losses of a node after which it must stay for a while before it is trusted again; restarts of an ordinary day are
/// fewer.
pub const FLAPS_FREE: u32 = 3;
/// The first such while; it is doubled with each further loss, up to [`FLAP_DAMPING_MAX`].
pub const FLAP_DAMPING_MIN: Duration = Duration::from_millis(500);
/// The longest such while, and so the longest time that a node which has come to stay is left aside.
pub const FLAP_DAMPING_MAX: Duration = Duration::from_secs(8);
/// Time that a node must stay for one of its losses to be forgiven; longer than [`FLAP_DAMPING_MAX`], so that a node
/// cannot flap and be forgiven.
pub const FLAP_FORGIVEN_AFTER: Duration = Duration::from_secs(15);
/// Time before which no read is hedged, however quick most reads are: below it the second read costs more than it
/// saves.
pub const HEDGE_DELAY_MIN: Duration = Duration::from_millis(1);
/// Reads that may be hedged, in percent: the extra load that hedging may cost.
pub const HEDGE_PERCENT: u64 = 2;
/// Hedges that a quiet time may save up for a burst.
pub const HEDGES_SAVED_MAX: u64 = 20;
/// Reads before anything is known of how long they take: of fewer, the percentile that hedging waits for says little.
/// Until then [`REPLICA_LATE`] counts.
pub const HEDGE_SAMPLES_MIN: u32 = 256;
/// Time after which background writes (hint replay, read repair) are given up, to be tried again later.
pub const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two gossip rounds. News reaches a thousand nodes in some ten rounds or a few more; each round costs a
/// node a few small messages.
pub const GOSSIP_INTERVAL: Duration = Duration::from_secs(1);
/// Silence of a member's heartbeat after which it is suspect: five gossip rounds, so that a lost message or two
/// suspects nobody. Connections that fail count at once, so requests do not wait for this.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(5);
/// A member is shown as down after so many times the silence that makes it suspect.
pub const DOWN_AFTER_SUSPICIONS: u32 = 6;
/// Silence of a member's heartbeat after which it is shown as down, and gossiped with only now and then. Requests avoid
/// it from the suspicion on.
pub const DOWN_AFTER: Duration = Duration::from_secs(SUSPECT_AFTER.as_secs() * DOWN_AFTER_SUSPICIONS as u64);
/// Time for which a stopping node answers those who come late, unless nobody is connected to it: balancers look at
/// `/readyz` every few seconds.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Time without any connection after which a stopping node need not wait for late comers.
pub const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// The longest drain that can be set.
pub const DRAIN_MAX: Duration = Duration::from_secs(600);
/// Time within which a stopping node answers what it has in hand after the drain, or not at all: the deadline that
/// requests have by default.
pub const STOP_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Time that the last words and the closing of files may take; then the process ends without them, which costs the next
/// start a longer recovery and nothing else.
pub const STOP_ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Time for which it is believed that a member is stopping, unless it has started again: no stop takes longer.
pub const PARTING_MAX: Duration =
    Duration::from_secs(DRAIN_MAX.as_secs() + STOP_ANSWERS_WITHIN.as_secs() + STOP_ENDS_WITHIN.as_secs());
/// Time between two events of a shard after which it may have stood still itself: then others are not blamed for their
/// silence at once.
pub const PAUSE_NOTICED: Duration = Duration::from_secs(1);
/// Gossip rounds after which a down member or a seed is tried as well, so that partitions heal: within some seconds of
/// their end, for one connection attempt each time.
pub const GOSSIP_DOWN_EVERY: u64 = 5;
/// Bytes of a message of news between members (one larger entry still fits); more go in the next. It is some hundred
/// members with [`VNODES`] tokens each.
pub const NEWS_BYTES: usize = 256 * KIB;
/// Time that a node which has started again waits for all members to say what they remember of it. Who is silent until
/// then may remember more than its disk does.
pub const RETURN_PATIENCE: Duration = Duration::from_millis(1_500);
/// Time that a node listens before it serves, if it forms a cluster of its own and was not told outright to: a member
/// of another cluster may know it by its address. Longer than [`RECONNECT_MAX`], the time a member waits before it
/// tries a lost one again.
pub const LISTEN_FIRST: Duration = Duration::from_millis(1_200);
/// Pause between two looks at the hints owed to members that are back.
pub const HINT_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before a peer connection is tried again, doubled up to [`RECONNECT_MAX`].
pub const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// The longest such pause, and so about the longest time before a node that is back is connected.
pub const RECONNECT_MAX: Duration = Duration::from_secs(1);

// ---- per core: work in hand ------------------------------------------------------------------------------------
/// Client requests without an answer yet that a shard coordinates at once; more get 429. A queue that takes longer than
/// [`REQUEST_TIMEOUT`] to serve does work for askers who have gone, and one that does not fit the caches makes each
/// request dearer: under four times the load that nodes could serve, four thousand places gave three quarters of the
/// peak and thousands of timeouts, a thousand nearly all of it. This is still many times what a batch of the log holds.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 512;
/// Requests that have their answer and still wait for slower replicas; beyond it new ones get 429. A silent node is
/// waited for [`REPLICA_LATE`] by all that a core does meanwhile: at 50,000 requests a second these are 15,000.
pub const REQUESTS_ANSWERED_MAX: usize = 16 * 1024;
/// Bytes of values in requests that a shard coordinates at once, those that reads have got included; more get 429. So
/// much memory a core.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 128 * MIB;
/// Operations that wait for one key's latch; more get 429. A thousand writes one after the other, each with a sync of 1
/// to 5 ms, take up to [`REQUEST_TIMEOUT`].
pub const LATCH_WAITERS_MAX: usize = 1024;
/// Events that a driver handles before it looks at its engine again: writes wait for the log that much longer at worst.
pub const EVENTS_PER_TURN: usize = 256;
/// Messages from other nodes that wait in a shard's inbox; more are dropped, which their senders' deadlines notice.
pub const INBOX_MESSAGES_MAX: usize = 64 * 1024;
/// Bytes of those messages; more are dropped. So much memory a core.
pub const INBOX_BYTES_MAX: usize = 128 * MIB;
/// Reads for other shards that a shard has in hand; more are refused.
pub const FETCHES_MAX: usize = 32 * 1024;
/// Damaged records that a shard puts together again at once; the others wait until somebody meets them again. Each may
/// hold a state of [`MERGED_SIBLINGS_BYTES_MAX`].
pub const REBUILDS_MAX: usize = 32;
/// Bytes of states from other replicas that a shard has in hand; more are refused. So much memory a core: four states
/// of the greatest length.
pub const REPLICA_BYTES_IN_FLIGHT_MAX: usize = 256 * MIB;
/// Bytes queued towards one peer core, for long frames and for others each; more are dropped and the peer counts as
/// late. It holds the longest frame, and is half a second of a 1 Gbit/s link. So much memory for each peer core that
/// does not keep up.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 * MIB;
/// Messages queued from one core of a node to another: a ring of this many slots for each pair of cores.
pub const MESH_QUEUE_MESSAGES: usize = 1024;
/// Dots that are leased durably at once: one small record for each million writes of a slice. A crash skips what is
/// left of a block, which costs numbers only.
pub const DOT_LEASE: u64 = 1 << 20;
/// Incarnations left out for each start of the node whose lease of a slice is lost.
pub const INCARNATIONS_OF_START: u64 = 4;
/// Incarnations left out after the one that a version names and the slice has forgotten: later starts may have taken
/// some.
pub const FORGOTTEN_INCARNATIONS: u64 = 64;
/// Incarnations among which as many more are drawn at random: a node may forget more than once, and must not come to
/// the same one again.
pub const FORGOTTEN_INCARNATIONS_DRAWN: u64 = 1 << 20;
/// Incarnations ahead of the own one that a version may name and still be of this disk's past. One farther ahead tells
/// of another copy of the disk, or is forged: then the next one is not taken after it, but anywhere within
/// [`FAR_INCARNATIONS_DRAWN`].
pub const NEAR_INCARNATIONS: u64 = 1 << 24;
/// Incarnations among which one is drawn when the disk is a copy, or when others know one that is far ahead: two copies
/// then take the same one with a chance of one in 10^12.
pub const FAR_INCARNATIONS_DRAWN: u64 = 1 << 40;
/// Starts left out when the data directory is an older state or a copy; as many more at most, at random.
pub const LOST_STARTS: u64 = 256;
/// Incarnations left out when the last lease of a slice may be lost.
pub const LOST_INCARNATIONS: u64 = 1024;

// ---- hints -----------------------------------------------------------------------------------------------------
/// Hinted bytes that a shard keeps for absent replicas; at the bound the hint is dropped and its range marked. So much
/// disk a core: half a minute of writes at 130 MB/s.
pub const HINT_BYTES_MAX: u64 = 4 * GIB as u64;
/// Hints of one owner in replay at once, at the start, when nothing is known of how quickly it answers.
pub const HINT_WINDOW_START: usize = 4;
/// Hints of one owner in replay at once, at most: half of what a batch of its log holds.
pub const HINT_WINDOW: usize = 32;
/// Times that an owner may take longer to acknowledge a replayed hint than at its best, with [`HINT_ANSWER_SLACK`] on
/// top; beyond that it gets fewer at once. So its own requests stay within about twice their time.
pub const HINT_ANSWER_TIMES: u32 = 2;
/// Time on top of that, so that a quick disk's small delays count for nothing.
pub const HINT_ANSWER_SLACK: Duration = Duration::from_millis(1);
/// Time within which the replay to an owner that is back begins, at random, so that not all who owe it something begin
/// at once.
pub const HINT_JITTER_MAX: Duration = Duration::from_millis(400);
/// Pause before marked ranges that could not be gone through as a whole are tried again.
pub const SWEEP_PAUSE: Duration = Duration::from_secs(10);
/// Hints read by one scan: twice the window, so that the next ones are there before the window is empty.
pub const HINT_SCAN: usize = 64;

// ---- repair ----------------------------------------------------------------------------------------------------
/// Each two homes of an arc compare it once in this time at least.
pub const REPAIR_PASS: Duration = Duration::from_secs(3600);
/// Share of this after which an arc is due again, in percent.
pub const REPAIR_DUE_PERCENT: u32 = 75;
/// Sessions that a shard drives at once, and questions of others that it works on; more are refused.
pub const REPAIR_SESSIONS: usize = 4;
pub const REPAIR_QUESTIONS: usize = 32;
/// Keys of a leaf, about.
pub const LEAF_KEYS: u64 = 128;
/// Leaves of an arc: of one with more keys than these have, leaves have more.
pub const LEAVES_MAX: u64 = 16 * 1024;
/// Sums of one message.
pub const SUMS_MAX: usize = 64;
/// Bytes of keys and heads in one message, about: one larger head still fits.
pub const KEYS_BYTES: usize = 32 * KIB;
/// Keys that are read at once to be compared.
pub const REPAIR_SCAN: usize = 256;
/// Keys of one message: each has a byte at least.
pub const KEYS_LISTED_MAX: usize = REPAIR_SCAN;
/// Rows of leaves that a shard keeps.
pub const LEAVES_KEPT: usize = 4 * MIB / 48;
/// Leaves of an arc that were written to, beyond which all of it is folded again.
pub const TOUCHED_MAX: usize = 64;
/// Bytes of values a second that a node asks for and sends on its own account.
pub const REPAIR_BYTES_PER_SECOND: u64 = 32 * MIB as u64;
/// Records a second that a shard walks on its own account: 2 % of a core that walks a million; so many times as many
/// when an arc is late.
pub const FOLDED_PER_SECOND: u64 = 20_000;
pub const FOLDED_WHEN_LATE: u64 = 8;
/// Sessions wait for hints that their other side is owed, so long at most.
pub const REPAIR_HINTS_WAIT: Duration = Duration::from_secs(600);
/// An answer of the other side is waited for so long at most.
pub const REPAIR_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Keys that may be refused one after another before a session ends: it is not about these keys then.
pub const REPAIR_REFUSED_MAX: usize = 32;

// ---- frames ----------------------------------------------------------------------------------------------------
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Bytes of a frame before the HELLO exchange: memory that anybody who connects can make a core hold.
pub const FRAME_BYTES_BEFORE_HELLO: usize = 4 * KIB;
/// Bytes of a frame: the siblings of one key, merged, and a mebibyte for their head and the flatbuffer.
pub const FRAME_BYTES_MAX: usize = MERGED_SIBLINGS_BYTES_MAX + MIB;
/// Bytes of a frame that a server takes from a client: one value, and a mebibyte for context, key and flatbuffer.
pub const REQUEST_FRAME_BYTES_MAX: usize = VALUE_BYTES_CEILING + MIB;
/// Tables in one flatbuffer: several for each of [`FRAME_VALUES_MAX`] values. A forged frame costs no more work than
/// this many.
pub const FLATBUFFER_TABLES_MAX: usize = 16 * 1024;
/// Depth of the tables in one flatbuffer; verifying them recurses.
pub const FLATBUFFER_DEPTH_MAX: usize = 8;
/// Bytes beyond which a frame is sent after shorter ones, and between nodes over a connection of its own: 16 KiB hold
/// up a 1 Gbit/s link for 0.13 ms.
pub const LONG_FRAME_BYTES: usize = 16 * KIB;
/// Values in one frame: all siblings of a merged key.
pub const FRAME_VALUES_MAX: usize = MERGED_SIBLINGS_MAX;
/// Connections of clients that a shard serves; more are told so and closed. Each takes a descriptor, and a receive
/// buffer while it is active.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Open files without which a node does not start: listening ports, directories, and a few connections.
pub const OPEN_FILES_MIN: u64 = 64;
/// Open files that each shard adds to [`OPEN_FILES_MIN`]: its rings, and the log and tables of a small store.
pub const OPEN_FILES_PER_SHARD_MIN: u64 = 32;
/// Open files that are kept for the log and the tables of a node when connections share out the rest: the log must
/// never wait for a connection to go.
pub const OPEN_FILES_STORAGE: u64 = 4096;
/// Connections to a core from cores of other nodes: two of each core of a large cluster. Beyond them, and beyond what
/// each address may have, those go that have been silent for the longest.
pub const CALLS_MAX: usize = 10_000;
/// Connections of other nodes that come from one address, and half of all at most: a node needs two for each of its
/// cores.
pub const CALLS_PER_SOURCE: usize = 4 * SHARDS_MAX;
/// Connections of one core from one address: the two that it needs, and two that it has left behind.
pub const CALLS_PER_CORE: usize = 4;
/// The share of the open files not kept for the storage that is for other nodes: one in so many.
pub const CALLS_SHARE: usize = 4;
/// Connections to a core of nodes that are no members, or not yet known to it as members; more are closed. Each may
/// hold frames of twice [`NEWS_BYTES`].
pub const GUESTS_MAX: usize = 64;
/// Guests that come from one address, so that one stranger does not take all places.
pub const GUESTS_PER_SOURCE: usize = 16;
/// Time after its last connection for which a guest's gossip is answered: some gossip rounds, so that a newcomer joins.
pub const GUEST_REMEMBERED: Duration = Duration::from_secs(10);
/// Connections beyond [`CONNECTIONS_MAX`] that are asked for nothing but whether the node lives: probes get their
/// answer from a full node too.
pub const CONNECTIONS_RESERVED: usize = 32;
/// Bytes of unfinished frames and bodies, of answers that are not sent yet, and of messages that wait for other nodes,
/// that a core holds for its connections; at it those go that have been held up for [`CONNECTION_HELD_UP`], the longest
/// first. It holds one frame of the greatest length and many usual ones. So much memory a core.
pub const CONNECTION_BYTES_MAX: usize = 96 * MIB;
/// Bytes of these at which any connection may be closed, however short it has been held up.
pub const CONNECTION_BYTES_HARD: usize = 2 * CONNECTION_BYTES_MAX;
/// Time without progress after which a connection counts as held up.
pub const CONNECTION_HELD_UP: Duration = Duration::from_secs(1);
/// Silence of a connection after which it is asked whether its other side is still there.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Pause between two such questions.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Questions without an answer after which the connection is closed: a peer that vanished is noticed within a minute.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Time after which a kept HTTP connection without a request is closed: longer than balancers keep theirs (60 s is
/// usual), so that none sends a request into a connection that is being closed.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(120);
/// Time after which a connection of the client protocol without a request is closed; clients that vanish are noticed
/// sooner by keepalive.
pub const CLIENT_IDLE_MAX: Duration = Duration::from_secs(3600);
/// Time after which a connection that has not finished its HELLO is closed.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a connection is closed that sends nothing in the middle of a frame or of an HTTP request.
pub const STALLED_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which a connection is closed whose reader has not taken what was sent to it at once, 256 KiB at most: 2
/// KiB a second is too slow.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Requests in flight on one client connection; reading pauses at the bound. Twice what a shard coordinates at once, so
/// that one connection can keep it busy.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 1024;
/// Bytes of an HTTP head: two contexts, and the cookies and traces of proxies.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 * KIB;
/// Headers of an HTTP request; each is looked through for every header that is wanted.
pub const HTTP_HEADERS_MAX: usize = 100;
/// Bytes of a socket's receive buffer, taken only while a connection is active.
pub const RECEIVE_BUFFER_BYTES: usize = 64 * KIB;

// ---- engine ----------------------------------------------------------------------------------------------------
/// The unit of O_DIRECT: offsets and lengths are multiples of it, as the usual sectors and pages ask.
pub const PAGE: usize = 4096;
/// Bytes of a segment of the log at most. It holds the longest frame, and a terabyte is some 7,500 of them, each with
/// an open file.
pub const SEGMENT_BYTES: usize = 128 * MIB;
/// Segments among which what is live is spread: a segment takes this part of it, within [`SEGMENT_BYTES_USUAL_MIN`] and
/// [`SEGMENT_BYTES`]. So the two segments in use cost 3 % of space.
pub const SEGMENTS_OF_LIVE: u64 = 64;
/// Bytes of a segment while little is live, unless the file system is small.
pub const SEGMENT_BYTES_USUAL_MIN: usize = 6 * MIB;
/// Files of collected segments that a core keeps for reuse: at most 256 MiB of disk. A file that is written again needs
/// no space of the file system first.
pub const FREE_SEGMENTS: usize = 2;
/// Bytes below which a value stays in the record, beside the head: it is read with one access, and is rewritten by each
/// compaction that its record goes through.
pub const INLINE_VALUE_BYTES: usize = KIB;
/// Bytes of a batch of the log after which it is sealed (one larger record still fits): what a drive of 1 GB/s writes
/// in a millisecond. Larger ones would only make their first writers wait.
pub const BATCH_BYTES: usize = MIB;
/// Records of a batch of the log after which it is sealed: what comes after goes with the next one instead of making it
/// later.
pub const BATCH_RECORDS: usize = 64;
/// Damaged places that one core's engine names; more are only counted. Some 200 bytes each.
pub const DAMAGE_PLACES_MAX: usize = 1024;
/// Batches of the log in flight at each head: one at the device while the core frames the next. A third would wait
/// behind them.
pub const BATCHES_IN_FLIGHT: usize = 2;
/// Time that a write of `durability = interval` may wait for its sync, and so what a power cut may cost it.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before space is tried again where a file system has bytes left and refused all the same.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Time that a core's log rests before an empty batch proves that the last ones were whole: one page of log for each
/// time that writes pause so long.
pub const PROOF_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of writes that wait for the log of one core; more wait outside. So much memory a core, and it holds the
/// longest record.
pub const LOG_QUEUE_BYTES: usize = 64 * MIB;
/// Bytes of all memtables of a core, active and sealed (setting `memtable_bytes`): so much memory a core. Writes slow
/// down beyond it, to the pace of flushes.
pub const MEMTABLE_BYTES: usize = 32 * MIB;
/// Bytes of log after which a slice that pins its oldest part is flushed: it bounds what an opening reads again. With
/// 512 MiB and a disk of 1 GB/s that is about half a second a core.
pub const LOG_REPLAY_BYTES: usize = 512 * MIB;
/// Bytes of a block of a table before it is closed: one page, what a point read costs the disk.
pub const BLOCK_BYTES: usize = 4 * KIB;
/// Bytes of a table that compaction aims at: a compaction step reads and writes some ten of them, 100 ms of a disk at
/// most.
pub const TABLE_BYTES: usize = 4 * MIB;
/// Bytes of a table that are written at once. So much memory for each table under way, and as long as a read may wait
/// behind one write.
pub const TABLE_WRITE_BYTES: usize = 256 * KIB;
/// Bytes of a table that a cursor reads at once at most (one larger block still fits). So much memory for each table of
/// a scan or a compaction.
pub const TABLE_READ_AHEAD_BYTES: usize = 128 * KIB;
/// Bytes that the first read of a scan takes from a table, doubled up to [`TABLE_READ_AHEAD_BYTES`]: short scans read
/// little.
pub const TABLE_READ_FIRST_BYTES: usize = 16 * KIB;
/// Bytes that [`BLOCK_BYTES`] may be raised to: places within a block are 16 bits wide.
pub const BLOCK_BYTES_MAX: usize = 32 * KIB;
/// Levels of a slice, level 0 included; each is [`LEVEL_FACTOR`] times the one above.
pub const LEVELS: usize = 7;
/// Tables of level 0 in one slice that start a compaction. Each is looked into by every read of the slice that its
/// filter does not spare.
pub const LEVEL0_TABLES: usize = 4;
/// Times [`LEVEL0_TABLES`] at which level 0 is compacted however small it is beside level 1; until then it waits to be
/// worth the rewriting. Beyond it writes slow down.
pub const LEVEL0_PATIENCE: usize = 3;
/// Percent of delete records that makes a table worth compacting by itself.
pub const TABLE_DELETES_PERCENT: u64 = 30;
/// Growth from one level to the next. A record is rewritten some half as many times on each level that it passes.
pub const LEVEL_FACTOR: usize = 10;
/// Bits of filter for each key: about 1 % false positives, for 1.25 bytes of memory a key.
pub const FILTER_BITS_PER_KEY: usize = 10;
/// Bytes of table blocks that a core caches (setting `block_cache_bytes`). So much memory a core.
pub const BLOCK_CACHE_BYTES: usize = 32 * MIB;
/// Bytes of values that a core caches (setting `value_cache_bytes`). So much memory a core.
pub const VALUE_CACHE_BYTES: usize = 64 * MIB;
/// Bytes of filters and indexes of all tables of a core: some 300 million keys at 1.66 bytes each. Beyond, the deepest
/// tables do without filters.
pub const TABLE_MEMORY_BYTES: usize = 512 * MIB;
/// Percent of dead bytes in a sealed segment below which it is never worth collecting: to gain one byte nine would be
/// copied.
pub const SEGMENT_DEAD_PERCENT: u64 = 10;
/// Bytes of segments in use, in percent of what is live, at which collection begins; [`SPACE_SEGMENTS`] come on top.
/// Together with [`SPACE_PERCENT_MAX`] it was chosen by measurement, so that the log takes 1.5 times of what is live at
/// most while everything is replaced at full speed. A lower one copies more for each byte that is written.
pub const SPACE_PERCENT_START: u64 = 113;
/// Bytes of segments in use, in percent of what is live, at which collection goes as fast as it can. At as much again
/// above it as it is above [`SPACE_PERCENT_START`], writes go at the pace of collection.
pub const SPACE_PERCENT_MAX: u64 = 121;
/// Segments that do not count as space in use: those that are being filled, and those in reserve. No collection could
/// give them back.
pub const SPACE_SEGMENTS: u64 = 2;
/// Percent of a file system in use at which a node turns read-only: deletes, flushes and compactions need the rest to
/// give space back.
pub const DISK_FULL_PERCENT: u64 = 95;
/// Time of recent writes that background work may be behind before the node says so.
pub const BACKLOG_ALERT: Duration = Duration::from_secs(30);
/// Bytes a second that count as the least rate of background work: a backlog is told in seconds of this rate or a
/// greater one, so that the little that an idle node leaves is no alarm.
pub const BACKLOG_RATE_MIN: u64 = 4 * MIB as u64;
/// Files that a core's reserve of space consists of: 12 MiB of disk a core at most.
pub const RESERVE_PIECES: usize = 6;
/// Pieces of them that the log may have for deletes; the others are for flush and collection, and the last one for a
/// start.
pub const RESERVE_PIECES_LOG: usize = 2;
/// Bytes of one piece; less on a small file system.
pub const RESERVE_PIECE_BYTES_MAX: usize = 2 * MIB;
/// Part of a file system that one segment takes at most, as one in so many: on a small one segments are smaller, so
/// that some can be collected while others are written.
pub const SEGMENT_SHARE: u64 = 32;
/// Part of a file system that memtables, or the log behind them, take at most, as one in so many.
pub const REPLAY_SHARE: u64 = 16;
/// Bytes by which a segment grows when space is short: little enough for deletes to go on with.
pub const SHORT_STEP_BYTES: usize = 64 * KIB;
/// Bytes of a segment below which no file system is small enough to shrink it further; twice as many for memtables and
/// the log behind them.
pub const SEGMENT_BYTES_MIN: usize = 256 * KIB;
/// Keys returned by one scan at most: some 100 KiB to 4 MiB of keys in memory, and a bound on how long one scan holds
/// tables open.
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
    assert!(FORWARD_PROBED.as_nanos() < FORWARD_LATE.as_nanos());
    assert!(FORWARD_LATE.as_nanos() < FORWARD_PROBED.as_nanos() + REPLICA_LATE.as_nanos());
    assert!(
        REPLICA_LATE.as_nanos() <= SILENCE_TRIAL_MIN.as_nanos() && HEDGE_DELAY_MIN.as_nanos() < REPLICA_LATE.as_nanos()
    );
    assert!(REPAIR_SCAN <= SCAN_KEYS_MAX && REPAIR_DUE_PERCENT < 100 && SUMS_MAX as u64 <= LEAVES_MAX);
    assert!(REPAIR_TIMEOUT_MAX.as_nanos() <= REQUEST_TIMEOUT_MAX.as_nanos() && KEYS_BYTES < FRAME_BYTES_MAX);
    assert!(HINT_WINDOW_START <= HINT_WINDOW && HINT_JITTER_MAX.as_nanos() < HINT_INTERVAL.as_nanos());
    assert!(FLAP_DAMPING_MAX.as_nanos() < FLAP_FORGIVEN_AFTER.as_nanos());
    assert!(SPACE_PERCENT_START > 100 && SPACE_PERCENT_START < SPACE_PERCENT_MAX);
    assert!(FRAME_BYTES_MAX < CONNECTION_BYTES_MAX && STALLED_TIMEOUT.as_nanos() < SEND_TIMEOUT.as_nanos());
    assert!(SUSPECT_AFTER.as_nanos() < DOWN_AFTER.as_nanos() && LISTEN_FIRST.as_nanos() > RECONNECT_MAX.as_nanos());
};
