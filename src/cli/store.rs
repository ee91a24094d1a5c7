//! The cluster as commands about keys see it: the client library, found through a node's HTTP address, with failures
//! turned into exit codes.

use super::{
    Exit, Stop,
    fetch::{self, Host, Reach},
};
use crate::{
    client::{Client, ClientError, Connection, Options, Pipeline},
    http::views::ClusterView,
    protocol::versions::Context,
    types::{ErrorCode, Key, Level, Value},
};
use std::{net::SocketAddr, time::Duration};

const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// What a key holds, and the context of that.
pub struct Held {
    pub values: Vec<Value>,
    pub context: Context,
}

/// A request that failed: how the command would end, and the server's code if it was the server that refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    pub stop: Stop,
    pub code: Option<ErrorCode>,
}
impl Trouble {
    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        matches!(self.stop.exit, Exit::Unreachable | Exit::Degraded) || self.code.is_some_and(ErrorCode::retryable)
    }
}
impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        trouble.stop
    }
}
impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        let code = match &error {
            ClientError::Failure(failure) => Some(failure.code),
            _ => None,
        };
        let exit = match (&error, code) {
            (ClientError::Unreachable { .. }, _) | (_, Some(ErrorCode::NotReady)) => Exit::Unreachable,
            (ClientError::Timeout { .. }, _)
            | (_, Some(ErrorCode::QuorumUnavailable | ErrorCode::NotCovered | ErrorCode::Deadline)) => Exit::Degraded,
            (_, Some(ErrorCode::SiblingLimit)) => Exit::Conflict,
            (_, Some(ErrorCode::BadRequest)) | (ClientError::Key(_) | ClientError::Address(_), _) => Exit::Usage,
            _ => Exit::Failed,
        };
        let counts = match &error {
            ClientError::Failure(f) if f.needed > 0 => format!(" ({} of {} replicas answered)", f.acks, f.needed),
            _ => String::new(),
        };
        Trouble { stop: Stop::new(exit, format!("{error}{counts}")), code }
    }
}

/// Where the members' client ports are.
pub struct Seeds(Vec<SocketAddr>);
impl Seeds {
    /// Asks the nodes named on the command line, in turn, for the members. Healthy members come first.
    pub fn find(reach: &Reach) -> Result<Seeds, Stop> {
        let (_, mut cluster): (Host, ClusterView) = fetch::view(&reach.nodes, "/v1/cluster")?;
        cluster.members.sort_by_key(|m| m.state != "up");
        let members = cluster.members.iter().filter(|m| !matches!(m.state.as_str(), "left" | "removed"));
        Ok(Seeds(members.map(|m| SocketAddr::new(m.address, m.ports.client)).collect()))
    }
    /// Bytes of the largest value that the cluster takes, as the first member that answers says.
    pub fn value_bytes_max(&self) -> Result<u64, Stop> {
        let mut last = ClientError::Address("the cluster has no members".to_owned());
        for seed in &self.0 {
            // The ring is asked for to have a first exchange: with it comes the server's HELLO.
            let welcomed = Connection::connect(*seed, HELLO_TIMEOUT).and_then(|mut c| c.ring(HELLO_TIMEOUT).map(|_| c));
            match welcomed.map(|c| c.welcome().map(|w| u64::from(w.value_bytes_max))) {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => last = ClientError::Address(format!("{seed} does not say hello")),
                Err(error) => last = error,
            }
        }
        Err(Trouble::from(last).stop)
    }
    /// Many requests at a time.
    pub fn pipeline(&self) -> Result<Pipeline, Stop> {
        Ok(Pipeline::connect(&self.0[..]).map_err(Trouble::from)?)
    }
}

fn options(level: Option<Level>, context: Option<Context>) -> Options {
    let mut options = Options { context, ..Options::default() };
    options.consistency.level = level;
    options
}

/// One request at a time.
pub struct Store(Client);
impl Store {
    pub fn connect(reach: &Reach) -> Result<Store, Stop> {
        let seeds = Seeds::find(reach)?;
        Ok(Store(Client::connect(&seeds.0[..]).map_err(Trouble::from)?))
    }
    pub fn get(&mut self, key: &Key, context: Option<Context>, level: Option<Level>) -> Result<Held, Trouble> {
        let got = self.0.get_with(key.bytes().clone(), &options(level, context))?;
        Ok(Held { values: got.siblings, context: got.context })
    }
    pub fn put(
        &mut self,
        key: &Key,
        value: Value,
        context: Option<Context>,
        level: Option<Level>,
    ) -> Result<Context, Trouble> {
        Ok(self.0.put(key.bytes().clone(), value, &options(level, context))?)
    }
    pub fn delete(&mut self, key: &Key, context: Option<Context>, level: Option<Level>) -> Result<Context, Trouble> {
        Ok(self.0.delete(key.bytes().clone(), &options(level, context))?)
    }
}
