//! The ring under real sockets and real files: echo, durable writes, abandoned operations, contention.
#![cfg(feature = "server")]

use bytes::{Bytes, BytesMut};
use dynarc::{
    engine::disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync},
    limits::{CONNECTION_BYTES_HARD, CONNECTION_BYTES_MAX, PAGE},
    server::{
        clock,
        disk::RingDisk,
        kernel::PortUse,
        ring::{Alone, Company, Ring},
        socket::{Ended, Inlet, Listener, Socket},
        ticker::Ticker,
        watch::{Watch, Watches},
    },
    types::Instant,
};
use futures_util::future::join_all;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};
use std::{
    cell::Cell,
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

/// Runs `work` on an executor with a ring, and stops the ring after it.
fn with_ring<T: Send + 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce(Rc<Ring>) -> F + Send + 'static,
) -> T {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(Duration::from_micros(500))
        .io_memory(64 << 10)
        .make()
        .expect("an executor");
    let ticker = Ticker::start().expect("a ticker");
    let pulse = ticker.pulse();
    let turns = pulse.turns();
    executor.spawn(pulse.keep()).detach();
    let output = executor.run(async move {
        let ring = Ring::new().expect("a ring");
        ring.count_turns(turns);
        let driver = glommio::spawn_local(ring.clone().drive(Alone)).detach();
        let output = work(ring.clone()).await;
        ring.stop();
        driver.await.expect("a driver").expect("a ring that works");
        output
    });
    ticker.stop();
    output
}

async fn echo(ring: Rc<Ring>, listener: Listener, watches: Watches, connections: usize) {
    for _ in 0..connections {
        let socket = listener.accept().await.expect("a connection");
        let watch = watches.start(&socket);
        ring.spawn(async move {
            let (mut inlet, mut buffer) = (Inlet::new(socket.clone(), watch), BytesMut::new());
            while inlet.fill(&mut buffer).await.is_ok() {
                let pieces = vec![buffer.split().freeze()];
                if socket.send_all(pieces).await.1.is_err() {
                    return;
                }
            }
        });
    }
}

#[test]
fn what_is_sent_in_pieces_comes_back_whole() {
    let address: SocketAddr = "127.0.10.1:7601".parse().expect("an address");
    let (sent, back) = with_ring(move |ring| async move {
        let listener = Listener::bind(&ring, address, PortUse::Alone).expect("a listener");
        ring.spawn(echo(ring.clone(), listener, Watches::default(), 1));
        let socket = Socket::connect(&ring, address.ip(), address, Duration::from_secs(1)).await.expect("connected");
        // Far more pieces and bytes than one operation or a socket buffer takes.
        let pieces: Vec<Bytes> = (0..2000u32).map(|i| Bytes::from(vec![i as u8; (i % 7) as usize * 1000])).collect();
        let sent: Vec<u8> = pieces.iter().flatten().copied().collect();
        let (sender, total) = (socket.clone(), sent.len());
        ring.spawn(async move { sender.send_all(pieces).await.1.expect("sent") });
        let mut back = Vec::new();
        while back.len() < total {
            let (buffer, result) = socket.receive(BytesMut::with_capacity(100_000)).await;
            assert!(result.expect("bytes") > 0, "closed early");
            back.extend_from_slice(&buffer);
        }
        (sent, back)
    });
    assert!(sent == back, "{} bytes came back changed", sent.len());
}

#[test]
fn a_refused_connection_is_an_error() {
    let result = with_ring(|ring| async move {
        let to: SocketAddr = "127.0.10.1:1".parse().expect("an address");
        Socket::connect(&ring, to.ip(), to, Duration::from_secs(1)).await.map(drop).map_err(|e| e.kind())
    });
    assert_eq!(result, Err(io::ErrorKind::ConnectionRefused));
}

#[test]
fn dropped_operations_end_and_lose_nothing() {
    with_ring(|ring| async move {
        let address: SocketAddr = "127.0.10.1:7602".parse().expect("an address");
        let listener = Listener::bind(&ring, address, PortUse::Alone).expect("a listener");
        let socket = Socket::connect(&ring, address.ip(), address, Duration::from_secs(1)).await.expect("connected");
        let other = listener.accept().await.expect("accepted");
        for _ in 0..100 {
            drop(ring.pause(Duration::from_secs(100)));
            drop(socket.receive(BytesMut::with_capacity(4096)));
        }
        while ring.in_flight() > 0 {
            glommio::executor().yield_now().await;
        }
        other.send_all(vec![Bytes::from_static(b"still here")]).await.1.expect("sent");
        let (buffer, _) = socket.receive(BytesMut::with_capacity(100)).await;
        assert_eq!(&buffer[..], b"still here");
    });
}

/// So many connections, both ends, and the watch of the accepted one.
async fn watched(
    ring: &Rc<Ring>,
    address: SocketAddr,
    watches: &Watches,
    count: usize,
) -> Vec<(Socket, Socket, Rc<Watch>)> {
    let listener = Listener::bind(ring, address, PortUse::Alone).expect("a listener");
    let mut all = Vec::new();
    for _ in 0..count {
        let socket = Socket::connect(ring, address.ip(), address, Duration::from_secs(1)).await.expect("connected");
        let other = listener.accept().await.expect("accepted");
        let watch = watches.start(&other);
        all.push((socket, other, watch));
    }
    all
}

#[test]
fn beyond_the_budget_those_go_that_have_not_got_on_for_the_longest() {
    with_ring(|ring| async move {
        let watches = Watches::default();
        let address: SocketAddr = "127.0.10.1:7606".parse().expect("an address");
        let all = watched(&ring, address, &watches, 5).await;
        let tenth = CONNECTION_BYTES_HARD / 10;
        [1, 2, 3, 3].iter().zip(&all).for_each(|(tenths, (_, _, watch))| watch.hold_incoming(tenths * tenth));
        assert_eq!(watches.bytes(), 9 * tenth);
        // The first gets on; who holds nothing is not looked at, however old.
        all[0].2.progressed(0);
        all[0].2.progressed(1 << 20);
        all[1].2.hold_incoming(0);
        all[4].2.hold_outgoing(4 * tenth);
        assert_eq!((watches.bytes(), watches.given_up()), (5 * tenth, 2));
        assert!(watches.bytes() <= CONNECTION_BYTES_MAX);
        // The other side of those hears of it: 2 and 3, and nobody else.
        for (number, (socket, ..)) in all.iter().enumerate() {
            let goes = matches!(number, 2 | 3);
            let receiving = std::pin::pin!(socket.receive(BytesMut::with_capacity(16)));
            let pause = std::pin::pin!(ring.pause(Duration::from_millis(if goes { 20_000 } else { 20 })));
            match futures_util::future::select(receiving, pause).await {
                futures_util::future::Either::Left(((_, result), _)) => {
                    assert!(goes && !matches!(result, Ok(bytes) if bytes > 0), "connection {number}");
                }
                futures_util::future::Either::Right(_) => assert!(!goes, "connection {number} stays open"),
            }
        }
        drop(all);
        assert_eq!(watches.bytes(), 0);
    });
}

#[test]
fn where_all_places_are_taken_those_go_that_rest_for_the_longest() {
    with_ring(|ring| async move {
        let watches = Watches::default();
        let address: SocketAddr = "127.0.10.1:7607".parse().expect("an address");
        let all = watched(&ring, address, &watches, 4).await;
        assert!(watches.has_place(3, 4));
        // All have something in hand.
        assert!(!watches.has_place(4, 4));
        [2, 1, 3].into_iter().for_each(|number: usize| all[number].2.rest(Duration::from_secs(60)));
        assert!(watches.has_place(4, 4));
        let going = |number: usize| all[number].2.expired();
        assert_eq!([0, 1, 2, 3].map(going), [false, false, true, false]);
        // It has been told and has not ended: its place is given away once.
        assert!(watches.has_place(4, 4));
        assert_eq!([0, 1, 2, 3].map(going), [false, false, true, false]);
        assert!(watches.has_place(5, 4));
        assert_eq!([0, 1, 2, 3].map(going), [false, true, true, false]);
        drop(all);
        assert!(!watches.has_place(4, 4) && watches.given_up() == 2);
    });
}

#[test]
fn an_inlet_ends_at_its_deadline_and_gives_its_buffer_back_when_quiet() {
    with_ring(|ring| async move {
        let address: SocketAddr = "127.0.10.1:7603".parse().expect("an address");
        let listener = Listener::bind(&ring, address, PortUse::Alone).expect("a listener");
        let watches = Watches::default();
        ring.spawn(watches.clone().sweep(ring.clone()));
        let socket = Socket::connect(&ring, address.ip(), address, Duration::from_secs(1)).await.expect("connected");
        let other = listener.accept().await.expect("accepted");
        other.send_all(vec![Bytes::from_static(b"one")]).await.1.expect("sent");
        let watch = watches.start(&socket);
        let (mut inlet, mut buffer) = (Inlet::new(socket, watch.clone()), BytesMut::new());
        assert_eq!(inlet.fill(&mut buffer).await.expect("bytes"), 3);
        buffer.clear();
        // Longer than the quiet time: the receive is given up and begun again when bytes come.
        let later = glommio::spawn_local({
            let (ring, other) = (ring.clone(), other.clone());
            async move {
                ring.pause(Duration::from_millis(2500)).await;
                other.send_all(vec![Bytes::from_static(b"two!")]).await.1.expect("sent");
            }
        })
        .detach();
        assert_eq!(inlet.fill(&mut buffer).await.expect("bytes"), 4);
        assert_eq!(&buffer[..], b"two!");
        later.await;
        buffer.clear();
        watch.set_deadline(clock::now() + Duration::from_millis(10));
        assert!(matches!(inlet.fill(&mut buffer).await, Err(Ended::Expired)));
    });
}

#[test]
fn files_are_written_durably_and_read_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().to_owned();
    with_ring(move |ring| async move {
        let disk = RingDisk::new(ring.clone(), &path).expect("a disk");
        disk.create_dir("a/b").await.expect("directories");
        disk.create_dir("a/b").await.expect("again");
        let file = disk.open("a/b/one", OpenMode::Create).await.expect("a new file");
        file.allocate(64 * PAGE as u64).await.expect("space");
        assert_eq!(file.len().expect("a length"), 64 * PAGE as u64);
        // 80 pages in the background: three pieces and one sync.
        for (offset, lane) in [(0, Lane::Log), (PAGE as u64, Lane::Background)] {
            let mut buffer = PageBuffer::zeroed(80 * PAGE);
            buffer.as_mut_slice().iter_mut().enumerate().for_each(|(i, b)| *b = (i / 1000) as u8 + offset as u8);
            let (buffer, result) = file.write(offset, buffer, Sync::Data, lane).await;
            result.expect("written");
            let back = file.read(offset, 80 * PAGE, Lane::Foreground).await.expect("read");
            assert!(back.as_slice() == buffer.as_slice());
        }
        let beyond = file.read(100 * PAGE as u64, PAGE, Lane::Foreground).await;
        assert_eq!(beyond.map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
        let crooked = file.read(1, PAGE, Lane::Foreground).await;
        assert_eq!(crooked.map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
        let reads = join_all((0..81).map(|i| file.read(i * PAGE as u64, PAGE, Lane::Foreground))).await;
        assert!(reads.iter().all(|r| r.is_ok()));
        drop((reads, file));
        let again = disk.open("a/b/one", OpenMode::Create).await.map(drop).map_err(|e| e.kind());
        assert_eq!(again, Err(io::ErrorKind::AlreadyExists));
        disk.rename("a/b/one", "a/two").await.expect("renamed");
        disk.sync_dir("a").await.expect("synced");
        let mut names = disk.list("a").await.expect("names");
        names.sort();
        assert_eq!(names, [("b/".to_string(), 0), ("two".to_string(), 81 * PAGE as u64)]);
        assert_eq!(disk.list("nowhere").await.expect("nothing"), []);
        disk.remove("a/two").await.expect("removed");
        let gone = disk.open("a/two", OpenMode::Read).await.map(drop).map_err(|e| e.kind());
        assert_eq!(gone, Err(io::ErrorKind::NotFound));
        let space = disk.space().expect("space");
        assert!(space.available > 0 && space.total >= space.available);
        while ring.in_flight() > 0 {
            glommio::executor().yield_now().await;
        }
    });
}

/// A bell is heard by a core that is busy, waits in its ring, or sleeps in its executor.
#[test]
fn bells_are_heard_wherever_a_core_waits() {
    const ROUNDS: u64 = 60;
    struct Queue {
        count: Arc<AtomicU64>,
        seen: Cell<u64>,
        answers: mpsc::Sender<Instant>,
        ring: Rc<Ring>,
    }
    impl Company for Queue {
        fn turn(&self) -> usize {
            let new = self.count.load(Ordering::SeqCst) - self.seen.get();
            self.seen.set(self.seen.get() + new);
            if new > 0 {
                self.answers.send(clock::now()).expect("a listener");
            }
            if self.seen.get() == ROUNDS {
                self.ring.stop();
            }
            new as usize
        }
        fn quiet(&self) -> bool {
            self.count.load(Ordering::SeqCst) == self.seen.get()
        }
    }
    let count = Arc::new(AtomicU64::new(0));
    let (bells, bell) = mpsc::channel();
    let (answers, answer) = mpsc::channel();
    let counted = count.clone();
    let core = std::thread::Builder::new().spawn(move || {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().expect("an executor");
        let ticker = Ticker::start().expect("a ticker");
        let pulse = ticker.pulse();
        let turns = pulse.turns();
        executor.spawn(pulse.keep()).detach();
        executor.run(async move {
            let ring = Ring::new().expect("a ring");
            ring.count_turns(turns);
            bells.send(ring.bell()).expect("a listener");
            let queue = Queue { count: counted, seen: Cell::new(0), answers, ring: ring.clone() };
            ring.clone().drive(queue).await.expect("a ring that works");
        });
        ticker.stop();
    });
    let bell = bell.recv().expect("a bell");
    let mut worst = Duration::ZERO;
    for round in 0..ROUNDS {
        // At once, within the ring's patience, and long after it.
        let until = clock::now() + Duration::from_micros([0, 100, 3_000][round as usize % 3]);
        while clock::now() < until {
            std::hint::spin_loop();
        }
        let rung = clock::now();
        count.fetch_add(1, Ordering::SeqCst);
        bell.ring();
        let heard = answer.recv_timeout(Duration::from_secs(5)).expect("the bell was not heard");
        worst = worst.max(heard.since(rung));
    }
    core.expect("a thread").join().expect("the core");
    assert!(worst < Duration::from_secs(1), "the longest wait was {worst:?}");
}

/// Reads go on while the background keeps the core and the disk busy.
#[test]
fn a_busy_core_answers_within_fifty_milliseconds() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().to_owned();
    let worst = with_ring(move |ring| async move {
        let address: SocketAddr = "127.0.10.1:7604".parse().expect("an address");
        let disk = Rc::new(RingDisk::new(ring.clone(), &path).expect("a disk"));
        let stop = Rc::new(Cell::new(false));
        let low = glommio::executor().create_task_queue(
            Shares::Static(50),
            Latency::Matters(Duration::from_millis(1)),
            "background",
        );
        for i in 0..3 {
            let (disk, stop) = (disk.clone(), stop.clone());
            glommio::spawn_local_into(
                async move {
                    let file = disk.open(&format!("busy{i}"), OpenMode::Create).await.expect("a file");
                    let mut buffer = PageBuffer::zeroed(256 * PAGE);
                    while !stop.get() {
                        for chunk in buffer.as_mut_slice().chunks_mut(16 * PAGE) {
                            chunk.iter_mut().for_each(|b| *b = b.wrapping_mul(31).wrapping_add(7));
                            disk.breathe().await;
                        }
                        let (back, result) = file.write(0, buffer, Sync::Data, Lane::Background).await;
                        result.expect("written");
                        buffer = back;
                    }
                },
                low,
            )
            .expect("a task")
            .detach();
        }
        let listener = Listener::bind(&ring, address, PortUse::Alone).expect("a listener");
        ring.spawn(echo(ring.clone(), listener, Watches::default(), 1));
        let socket = Socket::connect(&ring, address.ip(), address, Duration::from_secs(1)).await.expect("connected");
        let (start, mut worst, mut buffer) = (clock::now(), Duration::ZERO, BytesMut::new());
        while clock::now().since(start) < Duration::from_secs(5) {
            let asked = clock::now();
            socket.send_all(vec![Bytes::from_static(&[7; 64])]).await.1.expect("sent");
            buffer.clear();
            buffer.reserve(4096);
            let (back, result) = socket.receive(buffer).await;
            assert_eq!(result.expect("an answer"), 64);
            buffer = back;
            worst = worst.max(clock::now().since(asked));
        }
        stop.set(true);
        while ring.in_flight() > 1 {
            ring.pause(Duration::from_millis(1)).await;
        }
        worst
    });
    assert!(worst < Duration::from_millis(50), "the longest wait was {worst:?}");
}
