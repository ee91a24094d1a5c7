//! One connection of the generator: bytes in and out, answers cut out of them.

use super::{
    dialect::{Dialect, Mute, Verdict},
    drive::{Book, OUTPUT_BYTES_MAX},
    poll::Poll,
};
use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

const INPUT_BYTES: usize = 256 << 10;
/// Reads of one connection before others have their turn.
const READS_PER_TURN: usize = 4;

pub(super) struct Link {
    pub stream: Option<TcpStream>,
    pub dialect: Box<dyn Dialect>,
    pub endpoint: usize,
    pub in_flight: usize,
    input: Vec<u8>,
    start: usize,
    end: usize,
    pub output: Vec<u8>,
    pub sent: usize,
    watched: bool,
    pub dirty: bool,
}

impl Link {
    pub fn new(stream: TcpStream, dialect: Box<dyn Dialect>, endpoint: usize) -> Link {
        Link { stream: Some(stream), dialect, input: vec![0; INPUT_BYTES], ..Link::absent(endpoint) }
    }
    /// A link to a node that is down.
    pub fn absent(endpoint: usize) -> Link {
        Link {
            stream: None,
            dialect: Box::new(Mute),
            endpoint,
            in_flight: 0,
            input: Vec::new(),
            start: 0,
            end: 0,
            output: Vec::new(),
            sent: 0,
            watched: false,
            dirty: false,
        }
    }
    pub fn clear(&mut self) {
        (self.in_flight, self.start, self.end, self.sent) = (0, 0, 0, 0);
        self.output.clear();
    }

    /// Writes what the socket takes; asks to be told when it takes more.
    pub fn flush(&mut self, poll: &Poll, index: usize) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < self.output.len() {
            match stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let blocked = self.sent < self.output.len();
        if !blocked {
            self.output.clear();
            self.sent = 0;
        } else if self.sent > OUTPUT_BYTES_MAX {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        if blocked != self.watched {
            self.watched = blocked;
            poll.watch_writable(stream, index as u64, blocked)?;
        }
        Ok(())
    }

    /// Reads what has come and books the answers in it.
    pub fn read(&mut self, book: &mut Book, now: u64) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        for _ in 0..READS_PER_TURN {
            if self.end == self.input.len() {
                if self.start > 0 {
                    self.input.copy_within(self.start..self.end, 0);
                    (self.start, self.end) = (0, self.end - self.start);
                } else {
                    let grown = self.input.len() * 2;
                    self.input.resize(grown, 0);
                }
            }
            let wanted = self.input.len() - self.end;
            let got = match stream.read(&mut self.input[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.end += got;
            let in_flight = &mut self.in_flight;
            let taken = self.dialect.answers(&self.input[self.start..self.end], &mut |answer| {
                *in_flight -= usize::from(answer.verdict != Verdict::AlsoValue);
                book.answered(answer, now);
            });
            self.start += taken.map_err(io::Error::other)?;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            if got < wanted {
                return Ok(());
            }
        }
        Ok(())
    }
}
