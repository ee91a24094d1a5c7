//! A core on a virtual disk, in a world that only listens.

use super::*;
use crate::{
    driver::identity::{self, NodeWish, PortsWish},
    protocol::message::{ClientToken, Fetched, Message, Operation, Purpose, Request, Response},
    sim::{
        disk::{Hang, VirtualDisk},
        executor::{Executor, Life},
    },
    types::{Consistency, Instant, Key, TableWord},
};
use std::{net::SocketAddr, time::Duration};

const NOW: Instant = Instant(5_000_000_000);
const STRANGER: Address = Address { node: NodeId(99), shard: ShardId(0) };

#[derive(Default)]
struct Listening {
    sent: RefCell<Vec<Envelope>>,
}
impl World for Listening {
    fn now(&self) -> Instant {
        NOW
    }
    fn wall_time(&self) -> u64 {
        1 << 60
    }
    fn send(&self, envelope: Envelope) {
        self.sent.borrow_mut().push(envelope);
    }
    fn send_to_seed(&self, _: SocketAddr, _: Message) {}
    fn reply(&self, _: ClientToken, _: Response) {}
    fn wake_at(&self, _: Instant) {}
    async fn breathe(&self) {
        crate::sim::executor::yield_now().await;
    }
}

/// What other nodes may ask of a core, and wait for.
fn questions() -> [Message; 3] {
    let (key, word, deadline) = (Key::new("k").expect("a key"), TableWord::default(), NOW + Duration::from_secs(1));
    let (operation, consistency) = (Operation::Get { context: None }, Consistency::default());
    let request = Request { key: key.clone(), operation, consistency, deadline };
    let siblings = crate::protocol::versions::Siblings::default();
    [
        Message::Forward { request, hops: 1, word, stamp: None },
        Message::Replicate { key: key.clone(), siblings, purpose: Purpose::Write, word, fresh: None },
        Message::Fetch { key, depth: Depth::Head, word },
    ]
}

/// They were dropped, and whoever asked waited until the silence spoke for itself.
#[test]
fn who_asks_a_node_that_writes_its_last_words_is_told_to_go_elsewhere() {
    let (executor, disk) = (Executor::new(), VirtualDisk::new());
    let (world, inbox) = (Rc::new(Listening::default()), Inbox::new());
    let wish = NodeWish {
        ip: Some([127, 0, 0, 1].into()),
        ports: PortsWish::default(),
        shards: 1,
        slices: 4,
        vnodes: 4,
        seeds: Vec::new(),
        bootstrap: true,
        random: 7,
        copied: false,
    };
    let identity = executor.block_on(identity::open(&disk, &wish)).expect("a new directory");
    let me = Address { node: identity.node, shard: ShardId(0) };
    let (settings, engine) = (Settings::default(), EngineOptions::default());
    let setup = CoreSetup { identity, shard: me.shard, settings, engine, seed: 1 };
    let core = executor.block_on(start(world.clone(), Rc::new(disk.clone()), inbox.clone(), setup)).expect("it opens");
    for (_, task) in core.background {
        executor.spawn(Life::OUTSIDE, task);
    }
    let ended = Rc::new(Cell::new(false));
    let (driver, end) = (core.driver, ended.clone());
    executor.spawn(Life::OUTSIDE, async move {
        driver.await.expect("a sound disk");
        end.set(true);
    });
    executor.run_for(Duration::from_secs(1));

    disk.hang(Some(Hang::All));
    inbox.push(Arrival::Stop);
    executor.run_for(Duration::from_secs(1));
    assert!(!ended.get(), "its last words wait for the disk");
    world.sent.borrow_mut().clear();
    for (exchange, message) in (1..).zip(questions()) {
        let deadline = NOW + Duration::from_secs(1);
        inbox.push(Arrival::Message(Envelope { from: STRANGER, to: me, exchange, deadline, message }));
    }
    executor.run_for(Duration::from_millis(1));
    let sent = world.sent.take();
    assert_eq!(sent.iter().map(|e| (e.to, e.exchange)).collect::<Vec<_>>(), [1, 2, 3].map(|n| (STRANGER, n)));
    let refused = |message: &Message| match message {
        Message::Forwarded(Err(failure)) => failure.outcome == Outcome::NotApplied && failure.may_differ_elsewhere(),
        Message::Replicated(Err(Refusal::NotMine)) | Message::Fetched(Err(Refusal::NotMine)) => true,
        _ => false,
    };
    assert!(sent.iter().all(|envelope| refused(&envelope.message)), "{sent:?}");

    // Answers are not answered, and the end comes when the disk lets it.
    let answer = Message::Fetched(Ok(Fetched::Nothing));
    inbox.push(Arrival::Message(Envelope { from: STRANGER, to: me, exchange: 4, deadline: NOW, message: answer }));
    disk.hang(None);
    executor.run_for(Duration::from_secs(1));
    assert!(ended.get() && world.sent.take().is_empty());
}
