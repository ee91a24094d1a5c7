//! Waiting for a condition, with a deadline: the one place of the tests that sleeps.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Looks every few milliseconds until there is something; panics with `what` and the last excuse at the deadline.
pub fn until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(excuse) if start.elapsed() > within => panic!("{what}: not within {within:?}: {excuse}"),
            Err(_) => pause(Duration::from_millis(5)),
        }
    }
}

/// Lets time pass that is itself the subject: a measurement, a slow client, a crash at a random moment.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Whether something listens on the HTTP port of this address.
pub fn reachable(ip: IpAddr) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(ip, 7700), Duration::from_secs(1)).map(drop)
}
