//! A get with a quorum.
//!
//! The value is read from the own copy, the heads from the other home replicas. When R have answered, their heads are
//! merged; if the own copy holds every sibling of the merge the answer is complete, otherwise the missing values are
//! fetched from a replica that has them. Replicas found stale are written back after the answer. A value that takes
//! longer than most is asked of another replica as well.
//!
//! A replica whose disk may have lost records gives what it has, and that counts for nothing: its "nothing" and its
//! "older" are what the loss would look like. It is one more that is asked beside the R. Only when every home replica
//! has answered, and there is no more to be known, what all of them have together is the answer.
//!
//! With too few home replicas within reach, their stand-ins are asked, and answer from what is parked there. They
//! count, but that a key holds nothing is believed of home replicas alone, and of none whose disk may have lost
//! records.
//!
//! A reader who passes a context has seen what it names: if those who answered have not, all others are asked, and
//! their stand-ins where they count. What none of them knows is not waited for.

use super::{Act, Cores, Plan, exchange, replicate};
use crate::{
    limits::BACKGROUND_TIMEOUT,
    protocol::{
        message::{Answer, Depth, Fetched, Lane, Message, Purpose, Refusal, Response},
        versions::{Context, Head, Siblings, Values},
    },
    types::{Address, Conflict, ErrorCode, Failure, Instant, Key, Outcome, TableWord},
};
use smallvec::SmallVec;

/// Message numbers of fetches of full depth: the target's index and this.
const VALUES: usize = 64;
/// Message number of repairs; their answers tell nothing.
const REPAIR: usize = 255;

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Late,
    Failed(Refusal),
    /// `doubted`: some of what it had may be lost.
    Answered {
        head: Head,
        values: Option<Values>,
        doubted: bool,
    },
}

struct Target {
    address: Address,
    state: State,
    /// Its values have been asked for.
    asked: bool,
    /// They were, and it took too long.
    slow: bool,
    /// It says nothing any more.
    silent: bool,
    /// A home replica of the key, not a stand-in.
    home: bool,
}

pub(super) struct Get {
    needed: usize,
    word: TableWord,
    /// Home replicas of the key, those that cannot be asked among them.
    homes: usize,
    conflict: Conflict,
    /// What the reader has seen.
    context: Option<Context>,
    /// The own copy first.
    targets: SmallVec<[Target; 4]>,
    /// Replicas that are asked only when one of these fails or is slow.
    others: SmallVec<[(Address, bool); 4]>,
    result: Option<Result<Siblings, Failure>>,
    replied: Option<Siblings>,
    repair_deadline: Instant,
    late: bool,
}

fn target(address: Address, home: bool) -> Target {
    Target { address, state: State::Waiting, asked: false, slow: false, silent: false, home }
}

impl Get {
    pub fn begin(
        id: u64,
        me: Address,
        (key, context): (&Key, Option<&Context>),
        deadline: Instant,
        plan: Plan,
        out: &mut Vec<Act>,
    ) -> Get {
        let others = plan.healthy().filter(|a| a.node != me.node).map(|a| (a, true));
        let mut others: SmallVec<[(Address, bool); 4]> = others.collect();
        // With R = 1 the own copy is the answer; asking the others would only repair them.
        let asked = if plan.needed > 1 { others.len().max(plan.needed - 1) } else { 0 };
        if plan.sloppy {
            others.extend(plan.spares.iter().map(|a| (*a, false)));
        }
        let mut targets: SmallVec<[Target; 4]> = [target(me, !plan.stands_in)].into_iter().collect();
        targets.extend(others.drain(..asked.min(others.len())).map(|(address, home)| target(address, home)));
        out.push(Act::Load { operation: id, key: key.clone(), depth: Depth::Full });
        for (index, target) in targets.iter().enumerate().skip(1) {
            let message = Message::Fetch { key: key.clone(), depth: Depth::Head, word: plan.word };
            out.push(Act::Send { to: target.address, exchange: exchange(id, index), deadline, message });
        }
        Get {
            needed: plan.needed,
            word: plan.word,
            homes: plan.homes.len(),
            conflict: plan.conflict,
            context: context.cloned(),
            targets,
            others,
            result: None,
            replied: None,
            repair_deadline: deadline + BACKGROUND_TIMEOUT,
            late: false,
        }
    }

    pub fn loaded(
        &mut self,
        id: u64,
        key: &Key,
        deadline: Instant,
        (result, doubted): (Result<Siblings, Refusal>, bool),
        out: &mut Vec<Act>,
    ) {
        self.targets[0].state = match result {
            Ok(s) => State::Answered { head: s.head, values: Some(s.values), doubted },
            Err(refusal) => State::Failed(refusal),
        };
        self.evaluate(id, key, deadline, out);
    }

    pub fn fetched(
        &mut self,
        id: u64,
        index: usize,
        key: &Key,
        deadline: Instant,
        result: Result<Fetched, Refusal>,
        out: &mut Vec<Act>,
    ) {
        let Some(target) = self.targets.get_mut(index % VALUES) else { return };
        if index == REPAIR {
            return;
        }
        let has_values = matches!(target.state, State::Answered { values: Some(_), .. });
        match result {
            Ok(Fetched::Full(s)) => {
                target.state = State::Answered { head: s.head, values: Some(s.values), doubted: false };
            }
            Ok(Fetched::Doubted { head, values: values @ Some(_) }) => {
                target.state = State::Answered { head, values, doubted: true };
            }
            Ok(_) if has_values => {}
            Ok(Fetched::Head(head)) => target.state = State::Answered { head, values: None, doubted: false },
            Ok(Fetched::Doubted { head, values: None }) => {
                target.state = State::Answered { head, values: None, doubted: true };
            }
            Ok(Fetched::Nothing) => {
                target.state = State::Answered { head: Head::default(), values: Some(Values::new()), doubted: false };
            }
            Err(refusal) => target.state = State::Failed(refusal),
        }
        self.evaluate(id, key, deadline, out);
    }

    pub fn unreachable(&mut self, id: u64, key: &Key, deadline: Instant, lost: (Address, Lane), out: &mut Vec<Act>) {
        // All that it asks is short.
        for target in self.targets.iter_mut().filter(|t| (t.address, Lane::Short) == lost) {
            let waits = matches!(target.state, State::Waiting | State::Late);
            let owes_values = target.asked && matches!(target.state, State::Answered { values: None, .. });
            if waits || owes_values {
                target.state = State::Failed(Refusal::Failed);
            }
        }
        self.evaluate(id, key, deadline, out);
    }

    /// The slow ones (this one alone, if named) are waited for no more; they may still answer. Gives who they are.
    pub fn late(&mut self, id: u64, only: Option<Address>, key: &Key, deadline: Instant, out: &mut Vec<Act>) -> Cores {
        // A second time it has taken so long that others do as well, if there are any.
        let again = only.is_none() && std::mem::replace(&mut self.late, true);
        let meant = |t: &Target| only.is_none_or(|core| core == t.address);
        let mut slow = Cores::new();
        for target in self.targets.iter_mut().filter(|t| meant(t)) {
            if target.state == State::Waiting || target.asked {
                slow.push(target.address);
            }
            // Named, it is known to say nothing at all: others are asked in its place.
            target.silent |= only.is_some() || (again && target.state == State::Late);
            if target.state == State::Waiting {
                target.state = State::Late;
            } else if target.silent && target.asked && matches!(target.state, State::Answered { values: None, .. }) {
                target.state = State::Failed(Refusal::Failed);
            }
            target.slow |= std::mem::take(&mut target.asked);
        }
        if self.targets[0].state == State::Late && self.needed == 1 {
            self.ask_another(id, key, deadline, out);
        }
        self.evaluate(id, key, deadline, out);
        // The own copy is not another core.
        slow.retain(|core| *core != self.targets[0].address);
        slow
    }

    /// The answer takes longer than most: asks another replica for the value. Whether there was one to ask.
    pub fn hedge(&mut self, id: u64, key: &Key, deadline: Instant, out: &mut Vec<Act>) -> bool {
        if self.result.is_some() || self.replied.is_some() {
            return false;
        }
        let asked_before = out.len();
        if self.targets.iter().any(|t| t.asked) {
            // The values are on their way from a slow one.
            self.targets.iter_mut().for_each(|t| t.slow |= std::mem::take(&mut t.asked));
            self.evaluate(id, key, deadline, out);
        } else if self.targets[0].state == State::Waiting {
            match self.targets.iter().position(|t| matches!(t.state, State::Answered { values: None, .. })) {
                Some(index) => self.ask_for_values(id, index, key, deadline, out),
                None => self.ask_another(id, key, deadline, out),
            }
        }
        out.len() > asked_before
    }
    /// Asks a replica that has not been asked for anything yet for all it has.
    fn ask_another(&mut self, id: u64, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        if !self.others.is_empty() {
            let (address, home) = self.others.remove(0);
            self.targets.push(target(address, home));
            self.ask_for_values(id, self.targets.len() - 1, key, deadline, out);
        }
    }
    /// Asks those who have not been asked yet for their heads.
    fn ask_all_others(&mut self, id: u64, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        for (to, home) in std::mem::take(&mut self.others) {
            let message = Message::Fetch { key: key.clone(), depth: Depth::Head, word: self.word };
            out.push(Act::Send { to, exchange: exchange(id, self.targets.len()), deadline, message });
            self.targets.push(target(to, home));
        }
    }
    fn ask_for_values(&mut self, id: u64, index: usize, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        self.targets[index].asked = true;
        let message = Message::Fetch { key: key.clone(), depth: Depth::Full, word: self.word };
        let to = self.targets[index].address;
        out.push(Act::Send { to, exchange: exchange(id, index + VALUES), deadline, message });
    }

    fn answers(&self) -> impl Iterator<Item = (&Head, Option<&Values>)> {
        self.targets.iter().filter_map(|t| match &t.state {
            State::Answered { head, values, .. } => Some((head, values.as_ref())),
            State::Waiting | State::Late | State::Failed(_) => None,
        })
    }

    /// Decides whether the answer is there, still to come, or impossible; asks for missing values.
    fn evaluate(&mut self, id: u64, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        if self.result.is_some() || self.replied.is_some() {
            return;
        }
        let is =
            |wanted: bool| move |t: &&Target| matches!(t.state, State::Answered { doubted, .. } if doubted == wanted);
        let answered = self.targets.iter().filter(is(false)).count();
        if answered < self.needed {
            let open = |t: &&Target| matches!(t.state, State::Waiting | State::Late);
            let (open, silent) =
                (self.targets.iter().filter(open), self.targets.iter().filter(open).filter(|t| t.silent));
            let (open, silent) = (open.count(), silent.count());
            let lacking = self.needed.saturating_sub(answered + open - silent);
            if lacking > 0 && !self.others.is_empty() {
                (0..lacking).for_each(|_| self.ask_another(id, key, deadline, out));
                return;
            }
            let homes = self.targets.iter().filter(|t| t.home && matches!(t.state, State::Answered { .. })).count();
            let doubted = self.targets.iter().any(|t| is(true)(&t));
            if !doubted || homes < self.homes {
                if answered + open < self.needed {
                    self.result = Some(Err(self.failure(answered)));
                }
                return;
            }
            // All have answered: nobody knows more. But nothing, of those alone that may have lost it, is no answer.
            if answered == 0 && self.answers().all(|(head, _)| head.is_empty()) {
                self.result = Some(Err(self.failure(0)));
                return;
            }
        }
        let merged = self.answers().fold(Head::default(), |all, (head, _)| all.join(head, self.conflict).head);
        let home = |t: &Target| t.home && matches!(t.state, State::Answered { doubted: false, .. });
        if merged.entries.is_empty() && !self.targets.iter().any(home) {
            // Stand-ins that hold nothing know nothing, and a home replica that may have lost records knows no more.
            let waiting = |t: &Target| t.home && matches!(t.state, State::Waiting | State::Late);
            if !self.targets.iter().any(waiting) {
                self.result = Some(Err(self.failure(0)));
            }
            return;
        }
        if let Some(context) = &self.context
            && !merged.covers(context, self.conflict)
        {
            self.ask_all_others(id, key, deadline, out);
            if self.targets.iter().all(|t| t.state != State::Waiting) {
                self.result = Some(Err(self.not_covered()));
            }
            return;
        }
        match self.assemble(&merged) {
            Some(values) => self.result = Some(Ok(Siblings { head: merged, values })),
            None => self.ask_values(id, &merged, key, deadline, out),
        }
    }

    /// The value of every sibling, if some answer holds each.
    fn assemble(&self, merged: &Head) -> Option<Values> {
        let find = |dot| {
            self.answers().find_map(|(head, values)| {
                let index = head.entries.iter().position(|e| e.dot == dot)?;
                values?.get(index).cloned()
            })
        };
        merged.entries.iter().map(|e| find(e.dot)).collect()
    }

    fn ask_values(&mut self, id: u64, merged: &Head, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        // The own copy, still being read, is likely to have them all.
        if self.targets[0].state == State::Waiting || self.targets.iter().any(|t| t.asked) {
            return;
        }
        let have: Vec<_> = self
            .answers()
            .filter(|(_, values)| values.is_some())
            .flat_map(|(head, _)| head.entries.iter().map(|e| e.dot))
            .collect();
        let missing = |head: &Head| {
            head.entries.iter().any(|e| !have.contains(&e.dot) && merged.entries.iter().any(|m| m.dot == e.dot))
        };
        let lacks = |t: &Target| matches!(&t.state, State::Answered { head, values: None, .. } if missing(head));
        let quick = self.targets.iter().position(|t| lacks(t) && !t.slow);
        match quick.or_else(|| self.targets.iter().position(lacks)) {
            Some(index) => self.ask_for_values(id, index, key, deadline, out),
            // Those that knew of the value cannot give it any more.
            None => self.result = Some(Err(self.failure(self.answers().count()))),
        }
    }

    fn failure(&self, answered: usize) -> Failure {
        let damaged = self.targets.iter().any(|t| t.state == State::Failed(Refusal::Damaged));
        let doubted = self.targets.iter().any(|t| matches!(t.state, State::Answered { doubted: true, .. }));
        let (code, what) = if damaged {
            (ErrorCode::Damaged, "; a stored value is damaged")
        } else if doubted {
            (
                ErrorCode::Damaged,
                "; the disk of a replica is damaged and may have lost the key's newest record, and not all other \
                 replicas have answered",
            )
        } else {
            (ErrorCode::QuorumUnavailable, "")
        };
        let detail = format!("{answered} of {} replicas answered{what}", self.needed);
        Failure::new(code, Outcome::NotApplied, detail).counts(answered, self.needed)
    }

    /// All who could be asked have answered, and none has seen what the reader has.
    fn not_covered(&self) -> Failure {
        let homes =
            self.targets.iter().filter(|t| t.home && matches!(t.state, State::Answered { doubted: false, .. })).count();
        let detail = format!(
            "the context names writes that are not known to those that answered, {homes} of {} replicas of the key; try \
             again, or read without the context to see what they know",
            self.homes
        );
        Failure::new(ErrorCode::NotCovered, Outcome::NotApplied, detail).counts(homes, self.homes)
    }

    /// Why this node cannot answer, though another may reach more replicas.
    pub fn gives_up(&self) -> Option<Failure> {
        match &self.result {
            Some(Err(failure)) => failure.may_differ_elsewhere().then(|| failure.clone()),
            Some(Ok(_)) | None => None,
        }
    }
    pub fn answer(&mut self) -> Option<Response> {
        let result = self.result.take()?;
        self.replied = Some(result.clone().unwrap_or_default());
        Some(result.map(|siblings| Answer::Got(siblings.into_shown())))
    }
    pub fn word(&self) -> TableWord {
        self.word
    }
    /// Whether there is somebody who has not been asked yet.
    pub fn has_more(&self) -> bool {
        !self.others.is_empty()
    }
    pub fn is_over(&self) -> bool {
        self.late || self.targets.iter().all(|t| !matches!(t.state, State::Waiting))
    }
    pub fn awaits(&self, core: Address) -> bool {
        self.targets.iter().any(|t| t.address == core)
    }
    pub fn deadline_failure(&self) -> Failure {
        let answered = self.answers().count();
        let detail = format!("{answered} of {} replicas answered in time", self.needed);
        Failure::new(ErrorCode::Deadline, Outcome::NotApplied, detail).counts(answered, self.needed)
    }

    /// Writes the answer back to the replicas that lack some of it. Returns how many.
    pub fn repair(&mut self, id: u64, key: &Key, out: &mut Vec<Act>) -> u64 {
        let Some(siblings) = self.replied.take() else { return 0 };
        let mut repaired = 0;
        for (index, target) in self.targets.iter().enumerate() {
            let State::Answered { head, .. } = &target.state else { continue };
            // What stand-ins hold is on its way home already.
            if !target.home || head.join(&siblings.head, self.conflict).head.same_state(head) {
                continue;
            }
            repaired += 1;
            if index == 0 {
                out.push(Act::Merge { key: key.clone(), siblings: siblings.clone(), word: self.word });
            } else {
                let message = replicate(key, &siblings, Purpose::Repair, self.word);
                let (to, deadline) = (target.address, self.repair_deadline);
                out.push(Act::Send { to, exchange: exchange(id, REPAIR), deadline, message });
            }
        }
        repaired
    }
}
