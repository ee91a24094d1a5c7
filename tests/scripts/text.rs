//! Dots, clocks, contexts and siblings as scripts print them.

use super::name;
use dynarc::protocol::versions::{Context, Dot, Entry, Head, Values};

pub fn dot_text(dot: &Dot) -> String {
    if dot.is_stamp() {
        // Nanoseconds of stamps count writes within one instant of the script.
        return format!("{}@{}+{}", name(dot.actor.node()), dot.counter / 1_000_000, dot.counter % 1_000_000);
    }
    // Incarnations after the first are told apart: `A.2:1`.
    let incarnation = dot.actor.incarnation();
    let incarnation = if incarnation > 1 { format!(".{incarnation}") } else { String::new() };
    format!("{}{incarnation}:{}", name(dot.actor.node()), dot.counter)
}
pub fn clock_text(dots: &[Dot]) -> String {
    format!("[{}]", dots.iter().map(dot_text).collect::<Vec<_>>().join(" "))
}
pub fn context_text(context: &Context) -> String {
    let beside: String = context.dots.iter().map(|d| format!(" and {}", dot_text(d))).collect();
    clock_text(context.clock.entries()) + &beside
}
pub fn siblings_text(head: &Head, values: Option<&Values>) -> String {
    if head.entries.is_empty() {
        return if head.clock.is_empty() { "nothing".into() } else { "deleted".into() };
    }
    let value = |index: usize| values.and_then(|v| v.get(index)).map(|v| format!("{} ", v.escape_ascii()));
    let one = |(index, e): (usize, &Entry)| format!("{}({})", value(index).unwrap_or_default(), dot_text(&e.dot));
    head.entries.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}
