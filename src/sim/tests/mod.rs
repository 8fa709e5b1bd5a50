//! The whole library in the network of memory: what must hold wherever a connection is cut, and when exactly.

mod attempts;
mod attention;
mod audit;
mod closing;
mod cuts;
mod defects;
mod defects_of_peers;
mod ends;
mod fairness;
mod foreign;
mod inbox;
mod letters;
mod loans;
mod outages;
mod producers;
mod repeat;
mod session;
mod times;
mod turns;
mod waits;
mod wakers;
mod wakeups;
