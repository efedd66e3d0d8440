//! A node that can freeze, with more swap than its cells will ever need.

use berth_node_agent_core::agent::{Agent, Event};
use berth_node_agent_core::cell::Now;
use berth_node_agent_core::swap::Sample;
use berth_shared::units::Bytes;

/// The same agent, told so.
pub(crate) fn roomy(now: Now, mut agent: Agent) -> Agent {
    let room = Bytes(u64::MAX / 2);
    agent.step(now, Event::Freezing(Ok(())), &mut || 0);
    agent.step(now, Event::Swap(Sample { total: room, free: room, ..Sample::default() }), &mut || 0);
    agent
}
