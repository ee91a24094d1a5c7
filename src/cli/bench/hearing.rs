//! Which endpoints say nothing while requests wait for them: a stopped process, a cut wire. What waits there is asked
//! elsewhere, as a client that has other replicas would; and one operation a while tries whether it is back.

/// Pause between two operations that try a silent endpoint.
const TRIAL_NS: u64 = 1_000_000_000;

/// Times are nanoseconds since the start of the run.
pub struct Hearing {
    patience_ns: u64,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Copy, Default)]
struct Endpoint {
    heard_ns: u64,
    /// When the next trial is due.
    silent: Option<u64>,
}

impl Hearing {
    pub fn new(endpoints: usize, patience_ns: u64) -> Hearing {
        Hearing { patience_ns, endpoints: vec![Endpoint::default(); endpoints] }
    }
    /// Something came from it.
    pub fn heard(&mut self, endpoint: usize, now: u64) {
        self.endpoints[endpoint] = Endpoint { heard_ns: now, silent: None };
    }
    /// A request waits since `sent_ns`. Whether nothing at all has come for too long while it waited.
    pub fn is_waited_for(&mut self, endpoint: usize, sent_ns: u64, now: u64) -> bool {
        let place = &mut self.endpoints[endpoint];
        let silent = now.saturating_sub(sent_ns.max(place.heard_ns)) > self.patience_ns;
        if silent && place.silent.is_none() {
            place.silent = Some(now + TRIAL_NS);
        }
        silent
    }
    /// Whether operations go elsewhere, without a look at the time.
    pub fn is_silent(&self, endpoint: usize) -> bool {
        self.endpoints[endpoint].silent.is_some()
    }
    /// Whether this operation goes elsewhere: all but one a second, while it is silent.
    pub fn shuns(&mut self, endpoint: usize, now: u64) -> bool {
        match &mut self.endpoints[endpoint].silent {
            Some(due) if now < *due => true,
            Some(due) => {
                *due = now + TRIAL_NS;
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_nothing_at_all_while_a_request_waits() {
        let mut hearing = Hearing::new(2, 100);
        hearing.heard(0, 10);
        assert!(!hearing.is_waited_for(0, 20, 120));
        hearing.heard(0, 125);
        assert!(!hearing.is_waited_for(0, 20, 225), "others were answered");
        assert!(!hearing.is_silent(0));
        // A request that was sent before its last word is waited for as well.
        assert!(hearing.is_waited_for(0, 20, 226));
        hearing.heard(0, 226);
        assert!(hearing.is_waited_for(0, 230, 331));
        assert!(hearing.is_silent(0) && !hearing.is_silent(1));
        assert!(hearing.shuns(0, 400));
        assert!(!hearing.shuns(0, 331 + TRIAL_NS), "one tries");
        assert!(hearing.shuns(0, 332 + TRIAL_NS), "and one only");
        hearing.heard(0, 340 + TRIAL_NS);
        assert!(!hearing.is_silent(0) && !hearing.shuns(0, 341 + TRIAL_NS));
    }
}
