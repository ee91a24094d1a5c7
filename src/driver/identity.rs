//! What a node remembers of itself: who it is, where it listens, how often it has started, and the last known others.
//!
//! Two small files in `node/`: `identity` and `members`. Each is replaced whole (written beside, synced, renamed,
//! directory synced) and carries a magic, a format number, a length and a CRC-32C; the rulers are in
//! `schema/node.md`. The generation is raised durably before the node speaks to anyone.

use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync, lacks_room},
        error::EngineError,
        recover, reserve,
        wal::{roll, segment},
    },
    limits::{LISTEN_FIRST, LOST_STARTS, MEMBERS_MAX, PAGE, SHARDS_MAX, SLICES_MAX, VNODES_MAX},
    types::{ClusterId, Member, MemberState, NodeId, Ports, Token},
};
use bytes::{BufMut, BytesMut};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

const DIRECTORY: &str = "node";
const IDENTITY: &str = "node/identity";
const MEMBERS: &str = "node/members";
/// Newest formats. An identity of format 1 names no cluster.
const IDENTITY_FORMAT: u32 = 2;
const MEMBERS_FORMAT: u32 = 1;
const HEADER_BYTES: usize = 20;
/// Seeds that are remembered.
const SEEDS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot use the data directory: {0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error(
        "{file} is damaged ({reason}); restore it, or start with an empty data directory and let replicas refill it"
    )]
    Damaged { file: &'static str, reason: &'static str },
    #[error("{file} has format {found}; this Dynarc reads up to {known}: it was written by a newer version")]
    NewerFormat { file: &'static str, found: u32, known: u32 },
    #[error(
        "node/identity is missing, but {directory}/ holds data: restore it from the same copy as the rest, or start with an \
         empty data directory and let replicas refill it"
    )]
    Nameless { directory: &'static str },
    #[error("the data directory is new: an address to listen on is needed")]
    NoAddress,
    #[error("{0}")]
    Refused(String),
}

/// What the operator asks for. Address and ports are needed for a new directory and override a known one's.
#[derive(Clone, Debug)]
pub struct NodeWish {
    pub ip: Option<IpAddr>,
    pub ports: PortsWish,
    pub shards: u16,
    /// Slices of a new directory; kept for life.
    pub slices: u16,
    /// Tokens of a new directory; kept for life.
    pub vnodes: usize,
    /// Peer address (port of core 0) of other nodes; remembered.
    pub seeds: Vec<SocketAddr>,
    /// Form a cluster, if the node is of none yet. A new directory without seeds does so anyway.
    pub bootstrap: bool,
    /// Random bits of this start: a new directory's node id and tokens come from them.
    pub random: u64,
    /// The directory is known to be a copy: of another node's, or of its own at an earlier time.
    pub copied: bool,
}

/// Ports that are asked for; the others are as before, or the usual ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortsWish {
    pub http: Option<u16>,
    pub client: Option<u16>,
    pub peer: Option<u16>,
}
impl PortsWish {
    pub fn over(self, before: Ports) -> Ports {
        Ports {
            http: self.http.unwrap_or(before.http),
            client: self.client.unwrap_or(before.client),
            peer: self.peer.unwrap_or(before.peer),
        }
    }
}
impl From<Ports> for PortsWish {
    fn from(ports: Ports) -> PortsWish {
        PortsWish { http: Some(ports.http), client: Some(ports.client), peer: Some(ports.peer) }
    }
}

/// What of an identity changes while the node runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changing {
    /// +1 at each start, durable.
    pub generation: u64,
    pub cluster: ClusterId,
    /// The cluster has had other members.
    pub company: bool,
}

/// What a node is, from its start to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub node: NodeId,
    pub now: Changing,
    /// What the file has of it.
    pub saved: Changing,
    /// This start has formed the cluster; not stored. `Some(true)`: it was told to.
    pub formed: Option<bool>,
    /// The directory is a copy; not stored.
    pub copied: bool,
    /// Bits of this start, which no other start has; not stored.
    pub draw: u64,
    pub tokens: Arc<[Token]>,
    pub slices: u16,
    pub ip: IpAddr,
    pub ports: Ports,
    pub shards: u16,
    pub seeds: Vec<SocketAddr>,
    /// Whether the node has ever been part of a cluster that answered, or was started alone.
    pub joined: bool,
    /// The others as last saved.
    pub members: Vec<Member>,
    /// Why the file that held them told nothing; not stored.
    pub members_lost: Option<String>,
}
impl Identity {
    /// The node's own entry in the member list at this start.
    pub fn member(&self) -> Member {
        Member {
            id: self.node,
            ip: self.ip,
            ports: self.ports,
            shards: self.shards,
            slices: self.slices,
            tokens: self.tokens.clone(),
            state: if self.is_member() { MemberState::Up } else { MemberState::Joining },
            generation: self.now.generation,
            // Other lives of this generation, if the disk has forgotten some, had another one.
            revision: (self.draw >> 34) as u32,
            heartbeat: 0,
        }
    }
    fn is_member(&self) -> bool {
        !self.now.cluster.is_none() || self.joined || self.seeds.is_empty()
    }
    /// How long the node listens before it serves: see [`LISTEN_FIRST`].
    pub fn listens_first(&self) -> Duration {
        if self.formed == Some(false) { LISTEN_FIRST } else { Duration::ZERO }
    }
}

/// Loads or makes the identity and counts this start durably. Once per start of a node, before its shards open.
pub async fn open<D: Disk>(disk: &D, wish: &NodeWish) -> Result<Identity, BootError> {
    disk.create_dir(DIRECTORY).await?;
    disk.sync_dir("").await?;
    let known = peek(disk).await?;
    let shards_before = known.as_ref().map_or(wish.shards, |known| known.shards);
    let mut identity = match known {
        Some(known) => revise(known, wish),
        None => {
            refuse_used(disk).await?;
            make(wish)?
        }
    };
    // Others may know later starts than a copy or an older state does.
    identity.now.generation += 1 + if wish.copied { LOST_STARTS + wish.random % LOST_STARTS } else { 0 };
    identity.saved = identity.now;
    reserve::adapt(disk, identity.shards).await?;
    loop {
        match roll::adapt(disk, shards_before, identity.shards).await {
            Err(EngineError::Full) if reserve::spend_any(disk).await? => {}
            adapted => break adapted?,
        }
    }
    loop {
        match save_identity(disk, &identity).await {
            // A node with a full disk serves reads and deletes: that is how it gets space again.
            Err(BootError::Disk(e)) if lacks_room(&e) && reserve::spend_any(disk).await? => {}
            saved => return saved.map(|()| identity),
        }
    }
}

/// A directory with data and without its node's name must not quietly become another node: it would own other keys.
async fn refuse_used<D: Disk>(disk: &D) -> Result<(), BootError> {
    for directory in [recover::SLICES, segment::DIRECTORY] {
        if !disk.list(directory).await?.is_empty() {
            return Err(BootError::Nameless { directory });
        }
    }
    Ok(())
}

/// Reads the identity without counting a start; `None` in a new directory.
pub async fn peek<D: Disk>(disk: &D) -> Result<Option<Identity>, BootError> {
    let Some((format, body)) = read_file(disk, IDENTITY, IDENTITY_FORMAT).await? else { return Ok(None) };
    let fields = BootError::Damaged { file: IDENTITY, reason: "its fields" };
    let mut identity = decode_identity(&body, format).ok_or(fields)?;
    // It holds nothing that others do not tell: one that is damaged is asked for.
    let members = match read_file(disk, MEMBERS, MEMBERS_FORMAT).await {
        Ok(None) => Ok(Vec::new()),
        Ok(Some((_, body))) => decode_members(&body).ok_or("its fields".to_string()),
        Err(BootError::Damaged { reason, .. }) => Err(reason.to_string()),
        Err(BootError::Disk(error)) if error.kind() == io::ErrorKind::InvalidData => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    match members {
        Ok(members) => identity.members = members,
        Err(reason) => identity.members_lost = Some(reason),
    }
    if format == 1 {
        identity.now.company = identity.members.iter().any(|m| m.state != MemberState::Joining);
    }
    Ok(Some(identity))
}

/// Saves the others for the next start. `joined` is set when any is known.
pub async fn save_members<D: Disk>(disk: &D, identity: &Identity, members: &[Member]) -> Result<(), BootError> {
    let mut out = BytesMut::new();
    out.put_u32_le(members.len() as u32);
    members.iter().for_each(|m| put_member(&mut out, m));
    write_file(disk, MEMBERS, MEMBERS_FORMAT, &out).await?;
    // After the members: a node that knows its cluster knows of whom it consists.
    if (!identity.joined && !members.is_empty()) || identity.saved != identity.now {
        save_identity(disk, &Identity { joined: identity.joined || !members.is_empty(), ..identity.clone() }).await?;
    }
    Ok(())
}

fn revise(known: Identity, wish: &NodeWish) -> Identity {
    let seeds = if wish.seeds.is_empty() { known.seeds } else { wish.seeds.iter().copied().take(SEEDS_MAX).collect() };
    // One from before there were clusters' ids that has always been alone, or one that was never taken in.
    let lone = known.members.is_empty() && if known.joined { !known.now.company } else { wish.bootstrap };
    let forms = known.now.cluster.is_none() && lone;
    let cluster = if forms { ClusterId::from_random(wish.random) } else { known.now.cluster };
    Identity {
        now: Changing { cluster, ..known.now },
        formed: (forms && !known.joined).then_some(true),
        ip: wish.ip.unwrap_or(known.ip),
        ports: wish.ports.over(known.ports),
        shards: wish.shards,
        seeds,
        copied: wish.copied,
        draw: wish.random,
        ..known
    }
}

fn make(wish: &NodeWish) -> Result<Identity, BootError> {
    let ip = wish.ip.ok_or(BootError::NoAddress)?;
    let mut random = fastrand::Rng::with_seed(wish.random);
    let node = NodeId::from_random(random.u64(..));
    let mut tokens: Vec<Token> = (0..wish.vnodes.clamp(1, VNODES_MAX)).map(|_| Token(random.u64(..))).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let forms = wish.bootstrap || wish.seeds.is_empty();
    let cluster = if forms { ClusterId::from_random(random.u64(..)) } else { ClusterId::NONE };
    Ok(Identity {
        node,
        now: Changing { cluster, ..Changing::default() },
        saved: Changing::default(),
        formed: forms.then_some(wish.bootstrap),
        copied: false,
        draw: wish.random,
        tokens: tokens.into(),
        slices: wish.slices.clamp(1, SLICES_MAX as u16),
        ip,
        ports: wish.ports.over(Ports::default()),
        shards: wish.shards,
        seeds: wish.seeds.iter().copied().take(SEEDS_MAX).collect(),
        joined: forms,
        members: Vec::new(),
        members_lost: None,
    })
}

// ---- files -----------------------------------------------------------------------------------------------------

fn magic(file: &str) -> &'static [u8; 8] {
    if file == IDENTITY { b"DYNARCID" } else { b"DYNARCMB" }
}

/// `magic 8, format u32, length u32, CRC-32C of the body u32, body`, zeros to the end of the page.
async fn write_file<D: Disk>(disk: &D, file: &'static str, format: u32, body: &[u8]) -> Result<(), BootError> {
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(magic(file));
    header.put_u32_le(format);
    header.put_u32_le(body.len() as u32);
    header.put_u32_le(crc32c::crc32c(body));
    let mut buffer = PageBuffer::zeroed(HEADER_BYTES + body.len());
    buffer.as_mut_slice()[..HEADER_BYTES].copy_from_slice(&header);
    buffer.as_mut_slice()[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);

    let beside = format!("{file}.new");
    if disk.list(DIRECTORY).await?.iter().any(|(name, _)| format!("{DIRECTORY}/{name}") == beside) {
        disk.remove(&beside).await?;
    }
    let handle = disk.open(&beside, OpenMode::Create).await?;
    let (_, written) = handle.write(0, buffer, Sync::None, Lane::Log).await;
    written?;
    handle.sync().await?;
    disk.rename(&beside, file).await?;
    disk.sync_dir(DIRECTORY).await?;
    Ok(())
}

/// The body of a file and its format, which is `known` or an older one.
async fn read_file<D: Disk>(disk: &D, file: &'static str, known: u32) -> Result<Option<(u32, Vec<u8>)>, BootError> {
    let handle = match disk.open(file, OpenMode::Read).await {
        Ok(handle) => handle,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let damaged = |reason| BootError::Damaged { file, reason };
    let length = usize::try_from(handle.len()?).unwrap_or(usize::MAX);
    let bytes_max = HEADER_BYTES + MEMBERS_MAX * (VNODES_MAX * 8 + 128);
    if length < PAGE || !length.is_multiple_of(PAGE) || length > bytes_max.next_multiple_of(PAGE) {
        return Err(damaged("its length"));
    }
    let buffer = handle.read(0, length, Lane::Foreground).await?;
    let (header, rest) = buffer.as_slice().split_at(HEADER_BYTES);
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if &header[..8] != magic(file) {
        return Err(damaged("its first bytes"));
    }
    if field(8) > known {
        return Err(BootError::NewerFormat { file, found: field(8), known });
    }
    let body = rest.get(..field(12) as usize).ok_or(damaged("its length"))?;
    if crc32c::crc32c(body) != field(16) {
        return Err(damaged("its checksum"));
    }
    Ok(Some((field(8), body.to_vec())))
}

async fn save_identity<D: Disk>(disk: &D, identity: &Identity) -> Result<(), BootError> {
    let mut out = BytesMut::new();
    put_member(&mut out, &identity.member());
    out.put_u8(u8::from(identity.joined));
    out.put_u16_le(identity.seeds.len() as u16);
    for seed in &identity.seeds {
        put_ip(&mut out, seed.ip());
        out.put_u16_le(seed.port());
    }
    out.put_u64_le(identity.now.cluster.0);
    out.put_u8(u8::from(identity.now.company));
    write_file(disk, IDENTITY, IDENTITY_FORMAT, &out).await
}

// ---- bytes -----------------------------------------------------------------------------------------------------

fn put_ip(out: &mut BytesMut, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            out.put_u8(4);
            out.put_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.put_u8(6);
            out.put_slice(&v6.octets());
        }
    }
}

fn put_member(out: &mut BytesMut, member: &Member) {
    out.put_u64_le(member.id.0);
    put_ip(out, member.ip);
    [member.ports.http, member.ports.client, member.ports.peer, member.shards, member.slices]
        .iter()
        .for_each(|n| out.put_u16_le(*n));
    out.put_u8(member.state as u8);
    out.put_u64_le(member.generation);
    out.put_u32_le(member.revision);
    out.put_u64_le(member.heartbeat);
    out.put_u32_le(member.tokens.len() as u32);
    member.tokens.iter().for_each(|t| out.put_u64_le(t.0));
}

/// Takes fields off the front; `None` when there is not enough, or a field is out of bounds.
struct Fields<'a>(&'a [u8]);
impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn ip(&mut self) -> Option<IpAddr> {
        match self.u8()? {
            4 => Some(Ipv4Addr::from(self.array::<4>()?).into()),
            6 => Some(Ipv6Addr::from(self.array::<16>()?).into()),
            _ => None,
        }
    }
    fn state(&mut self) -> Option<MemberState> {
        use MemberState::*;
        let number = self.u8()?;
        [Joining, Up, Leaving, Left, Removed].into_iter().find(|s| *s as u8 == number)
    }
    fn member(&mut self) -> Option<Member> {
        let id = NodeId(self.u64()?);
        let ip = self.ip()?;
        let ports = Ports { http: self.u16()?, client: self.u16()?, peer: self.u16()? };
        let (shards, slices) = (self.u16()?, self.u16()?);
        let state = self.state()?;
        let (generation, revision, heartbeat) = (self.u64()?, self.u32()?, self.u64()?);
        let count = self.u32()? as usize;
        let sound = (1..=NodeId::MAX).contains(&id.0)
            && (1..=SHARDS_MAX).contains(&usize::from(shards))
            && (1..=SLICES_MAX).contains(&usize::from(slices))
            && (1..=VNODES_MAX).contains(&count);
        if !sound {
            return None;
        }
        let tokens: Arc<[Token]> = (0..count).map(|_| self.u64().map(Token)).collect::<Option<_>>()?;
        tokens.is_sorted_by(|a, b| a < b).then_some(Member {
            id,
            ip,
            ports,
            shards,
            slices,
            tokens,
            state,
            generation,
            revision,
            heartbeat,
        })
    }
}

fn decode_identity(body: &[u8], format: u32) -> Option<Identity> {
    let mut fields = Fields(body);
    let member = fields.member()?;
    let joined = fields.u8()? != 0;
    let count = usize::from(fields.u16()?);
    if count > SEEDS_MAX {
        return None;
    }
    let seeds: Vec<SocketAddr> =
        (0..count).map(|_| Some(SocketAddr::new(fields.ip()?, fields.u16()?))).collect::<Option<_>>()?;
    let (cluster, company) =
        if format == 1 { (ClusterId::NONE, false) } else { (ClusterId(fields.u64()?), fields.u8()? != 0) };
    let now = Changing { generation: member.generation, cluster, company };
    fields.0.is_empty().then_some(Identity {
        node: member.id,
        now,
        saved: now,
        formed: None,
        copied: false,
        draw: 0,
        tokens: member.tokens,
        slices: member.slices,
        ip: member.ip,
        ports: member.ports,
        shards: member.shards,
        seeds,
        joined,
        members: Vec::new(),
        members_lost: None,
    })
}

fn decode_members(body: &[u8]) -> Option<Vec<Member>> {
    let mut fields = Fields(body);
    let count = fields.u32()? as usize;
    if count > MEMBERS_MAX {
        return None;
    }
    let members = (0..count).map(|_| fields.member()).collect::<Option<Vec<_>>>()?;
    fields.0.is_empty().then_some(members)
}
