//! Guests, namespaces and the agent.
