//! A server in this process that stores nothing: what the generator itself can do, and what it sees of a stall.

use super::{dialect::Service, poll::Poll};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A pause of the server: begins after `at`, lasts `length`.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub at: Duration,
    pub length: Duration,
}

/// The running server; stops when dropped.
pub struct Echo {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const LISTENER: u64 = u64::MAX;

impl Echo {
    pub fn start(service: Service, stall: Option<Stall>, pin: Option<usize>) -> io::Result<Echo> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let (address, stop) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let mut serving = Serving { listener, poll: Poll::new()?, connections: vec![], service };
        serving.poll.add(&serving.listener, LISTENER)?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("bench-echo".into()).spawn(move || {
            if let Some(cpu) = pin {
                core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            }
            serving.run(&stopped, stall);
        })?;
        Ok(Echo { address, stop, thread: Some(thread) })
    }
}
impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the echo shows in the run's failures.
            let _ = thread.join();
        }
    }
}

struct Serving {
    listener: TcpListener,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    service: Service,
}
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    sent: usize,
}

impl Serving {
    fn run(&mut self, stop: &AtomicBool, mut stall: Option<Stall>) {
        let (started, mut ready) = (Instant::now(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            if self.poll.wait(Duration::from_millis(20), &mut ready).is_err() {
                return;
            }
            if let Some(due) = stall
                && started.elapsed() >= due.at
            {
                std::thread::sleep(due.length);
                stall = None;
            }
            for event in &ready {
                if event.token == LISTENER {
                    self.accept();
                    continue;
                }
                let index = event.token as usize;
                let alive = match &mut self.connections[index] {
                    Some(connection) => connection.serve(&mut self.service, &self.poll, index).is_ok(),
                    None => true,
                };
                if !alive {
                    self.connections[index] = None;
                }
            }
        }
    }
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let index = self.connections.len();
            let set = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if set.and_then(|()| self.poll.add(&stream, index as u64)).is_ok() {
                let (input, output) = (vec![0; 256 << 10], Vec::new());
                self.connections.push(Some(Connection { stream, input, filled: 0, output, sent: 0 }));
            }
        }
    }
}

impl Connection {
    fn serve(&mut self, service: &mut Service, poll: &Poll, index: usize) -> io::Result<()> {
        if self.filled == self.input.len() {
            let grown = self.input.len() * 2;
            self.input.resize(grown, 0);
        }
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => self.filled += bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        let taken = service.serve(index, &self.input[..self.filled], &mut self.output).map_err(io::Error::other)?;
        self.input.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        let blocked = self.sent < self.output.len();
        if !blocked {
            self.output.clear();
            self.sent = 0;
        }
        poll.watch_writable(&self.stream, index as u64, blocked)
    }
}
