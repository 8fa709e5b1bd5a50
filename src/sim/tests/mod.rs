//! The whole library in the network of memory: what must hold wherever a connection is cut, and when exactly.

mod attempts;
mod attention;
mod audit;
mod cuts;
mod defects;
mod ends;
mod fairness;
mod foreign;
mod letters;
mod loans;
mod outages;
mod producers;
mod repeat;
mod session;
mod times;
mod waits;
mod wakers;
mod wakeups;
