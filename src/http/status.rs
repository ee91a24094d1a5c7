//! Statuses and their phrases, and the first lines of an answer.

use super::Reply;
use std::fmt::Write as _;

/// The phrase of a status, as HTTP has it; also the title of a problem.
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        300 => "Multiple Choices",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

/// Whether further requests are taken on the connection, as the answer says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persistence {
    /// As HTTP/1.1 has it by itself.
    Kept,
    /// Asked for by a client of HTTP/1.0, and granted.
    KeptAlive,
    Closed,
}

/// What a client that waits with its body is told.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The head of an answer. `date` is that of [`date`].
pub fn head_text(reply: &Reply, persistence: Persistence, date: &str) -> String {
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail.
    let _ = write!(text, "HTTP/1.1 {} {}\r\n", reply.status, phrase(reply.status));
    for (name, value) in &reply.headers {
        debug_assert!(value.bytes().all(|b| (b' '..0x7f).contains(&b)), "{name}: {value:?}");
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let _ = write!(text, "content-length: {}\r\ndate: {date}\r\n", reply.content_length());
    text.push_str(match persistence {
        Persistence::Kept => "\r\n",
        Persistence::KeptAlive => "connection: keep-alive\r\n\r\n",
        Persistence::Closed => "connection: close\r\n\r\n",
    });
    text
}

/// A time in seconds since 1970 as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years of 400 that begin with March: the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 2 } else { month - 10 };
    let year = year_of_era + era * 400 + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_whether_it_is_the_last() {
        let reply = crate::http::health_reply();
        let text = head_text(&reply, Persistence::Kept, "D");
        assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 24\r\ndate: D\r\n\r\n");
        assert!(head_text(&reply, Persistence::Closed, "D").ends_with("\r\nconnection: close\r\n\r\n"));
        assert!(head_text(&reply, Persistence::KeptAlive, "D").ends_with("\r\nconnection: keep-alive\r\n\r\n"));
    }
}
