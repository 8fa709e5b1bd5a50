//! Which of several addresses a message goes to.

use std::cmp::Reverse;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::foreign::{self, Panic};
use crate::peer::Address;

/// Several addresses, and a rule that says which of them a message goes to: for [`Manager::sink_to`](crate::Manager::sink_to). A
/// clone costs no copy. An address that is named twice counts once.
///
/// An address that is [down](crate::Health::Down) is given nothing while another may have it. One that is away, for which
/// messages are held, counts as one that is there: [`Config::reconnect`](crate::Config::reconnect) with
/// [`max_elapsed`](crate::Backoff::max_elapsed) says for how long. Without `reconnect` and without a session, an address whose
/// dial failed is left alone for a second, or for as long as the dial took. Then one message tries it again, for which a flush
/// waits; where the dial takes longer than 100 ms, the messages behind it go on without it. With a
/// [`message_ttl`](crate::Config::message_ttl) shorter than the dial, it expires there. When all addresses are down, a message
/// comes back from one after the other, and becomes a dead letter.
///
/// ```
/// use buffstreams::Route;
///
/// let spare_last = Route::failover(["10.0.0.1:5031", "10.0.0.2:5031"]);
/// // What begins with the same four bytes goes to the same address.
/// let by_user = Route::by_key(|message| message.get(..4).map(<[u8]>::to_vec), ["10.0.0.1:5031", "10.0.0.2:5031"]);
/// ```
#[derive(Clone)]
pub struct Route {
    addresses: Arc<[Address]>,
    /// Those of the addresses.
    hashes: Arc<[u64]>,
    rule: Rule,
}

#[derive(Clone)]
enum Rule {
    Failover,
    RoundRobin,
    Broadcast,
    ByKey(Arc<KeyOf>),
}

/// The program's, and may panic when it is dropped, which may be in a task of ours.
struct KeyOf(Option<KeyFn>);

type KeyFn = Box<dyn Fn(&[u8]) -> u64 + Send + Sync>;

impl Drop for KeyOf {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = foreign::dispose(self.0.take());
    }
}

impl Route {
    /// Each message goes to the first of them that is not down. When that one is full, the sink waits for it; when it is given
    /// up, what it had not sent goes to the next, and so does what follows, until it is up again.
    pub fn failover<A: Into<Address>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self::new(Rule::Failover, addresses)
    }

    /// The messages go to them in turn. One that is down or full is passed over. When none of those that are not down has room, the
    /// sink waits.
    pub fn round_robin<A: Into<Address>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self::new(Rule::RoundRobin, addresses)
    }

    /// Each message goes to all of them. The sink waits for the slowest, unless that is down: what is for that one becomes dead
    /// letters at once. Nothing goes to another address than the one that it was for.
    pub fn broadcast<A: Into<Address>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self::new(Rule::Broadcast, addresses)
    }

    /// Messages of the same key go to the same address, which rendezvous hashing picks: while one is down, its keys are spread over
    /// the others, and no other key moves. The sink waits for the address of each message in turn.
    ///
    /// `key` is called for each message, and again for one that came back, so it should be quick and always say the same; a panic
    /// in it ends the `start_send` that it was called in, or makes a dead letter of the message that came back. Which address a
    /// key has depends on nothing but the key and the addresses, whatever their order, and is the same on all machines. Only
    /// slices and arrays of numbers longer than a byte are not: the standard library hashes them as they are in memory.
    pub fn by_key<K: Hash, A: Into<Address>>(
        key: impl Fn(&[u8]) -> K + Send + Sync + 'static,
        addresses: impl IntoIterator<Item = A>,
    ) -> Self {
        let key = move |message: &[u8]| hash(&key(message));
        Self::new(Rule::ByKey(Arc::new(KeyOf(Some(Box::new(key))))), addresses)
    }

    fn new<A: Into<Address>>(rule: Rule, addresses: impl IntoIterator<Item = A>) -> Self {
        let mut known = Vec::<Address>::new();
        for address in addresses {
            let address = address.into();
            if !known.contains(&address) {
                known.push(address);
            }
        }
        let hashes = known.iter().map(|address| hash(address.as_str())).collect();
        Self { addresses: known.into(), hashes, rule }
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The addresses that a message may go to, the first choice first: for a program that sends one by one, as with
    /// [`Manager::write`](crate::Manager::write), and asks the next address when one has given the message back. A
    /// [broadcast](Self::broadcast) goes to all of them.
    ///
    /// `turn` is how many messages came before, for [`round_robin`](Self::round_robin), where each begins with the address behind
    /// that of the one before it. The other rules do not look at it. Which addresses are down does not count here:
    /// [`Manager::health`](crate::Manager::health) tells.
    ///
    /// # Panics
    ///
    /// If the program's function of the key does.
    ///
    /// ```
    /// use buffstreams::Route;
    ///
    /// let route = Route::round_robin(["a:1", "b:1", "c:1"]);
    /// assert_eq!(route.order(b"the second", 1), ["b:1".into(), "c:1".into(), "a:1".into()]);
    /// ```
    pub fn order(&self, message: &[u8], turn: usize) -> Vec<Address> {
        let mut order: Vec<usize> = self.in_turn(turn).collect();
        if let Rule::ByKey(_) = self.rule {
            let key = self.key(message);
            order.sort_by_key(|at| Reverse(self.rank(key, *at)));
        }
        order.into_iter().map(|at| self.addresses[at].clone()).collect()
    }

    /// Whether a message goes to all of the addresses, and not to one.
    pub fn is_broadcast(&self) -> bool {
        matches!(self.rule, Rule::Broadcast)
    }

    /// Whether an address that is full is passed over.
    pub(crate) fn passes_over(&self) -> bool {
        matches!(self.rule, Rule::RoundRobin)
    }

    /// The key of a message; 0 where there are none.
    pub(crate) fn key(&self, message: &[u8]) -> u64 {
        match &self.rule {
            Rule::ByKey(key) => key.0.as_ref().map_or(0, |key| key(message)),
            Rule::Failover | Rule::RoundRobin | Rule::Broadcast => 0,
        }
    }

    /// As [`key`](Self::key), in a task of ours.
    pub(crate) fn key_again(&self, message: &[u8]) -> Result<u64, Panic> {
        foreign::call(|| self.key(message))
    }

    /// Of those that may have a message of this key, the first, as an index.
    pub(crate) fn pick(&self, key: u64, turn: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.rule {
            Rule::ByKey(_) => (0..self.hashes.len()).filter(|at| may(*at)).max_by_key(|at| self.rank(key, *at)),
            Rule::Failover | Rule::RoundRobin | Rule::Broadcast => self.in_turn(turn).find(|at| may(*at)),
        }
    }

    /// The address that ranks highest has the key.
    fn rank(&self, key: u64, at: usize) -> u64 {
        mix(key ^ self.hashes[at])
    }

    /// All of them, as indices, beginning with whose turn it is.
    pub(crate) fn in_turn(&self, turn: usize) -> impl Iterator<Item = usize> + use<> {
        let len = self.addresses.len();
        // Without the remainder, the last turns there are would overflow.
        let first = if self.passes_over() { turn.checked_rem(len).unwrap_or(0) } else { 0 };
        (first..first + len).map(move |at| at % len)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match self.rule {
            Rule::Failover => "failover",
            Rule::RoundRobin => "round_robin",
            Rule::Broadcast => "broadcast",
            Rule::ByKey(_) => "by_key",
        };
        f.debug_struct("Route").field("rule", &rule).field("addresses", &self.addresses).finish()
    }
}

/// The provided methods hash a number in the byte order and the width of the machine: these do so in one order and one width.
macro_rules! little_endian {
    ($($method:ident: $number:ty as $wide:ty),* $(,)?) => {
        $(fn $method(&mut self, number: $number) {
            self.write(&(number as $wide).to_le_bytes());
        })*
    };
}

/// FNV-1a: that of the standard library may be another one in its next version.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        mix(self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    little_endian! {
        write_u16: u16 as u16, write_u32: u32 as u32, write_u64: u64 as u64, write_u128: u128 as u128,
        write_i16: i16 as i16, write_i32: i32 as i32, write_i64: i64 as i64, write_i128: i128 as i128,
        write_usize: usize as u64, write_isize: isize as i64,
    }
}

fn hash(key: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    hasher.finish()
}

/// The end of SplitMix64: each bit of what comes in changes half of what goes out.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because only the order itself shows that no other key moves.
    #[test]
    fn without_an_address_only_its_own_keys_move_and_each_has_its_share() {
        let addresses = ["a:1", "b:1", "c:1", "d:1"];
        let all = Route::by_key(<[u8]>::to_vec, addresses);
        let fewer = Route::by_key(<[u8]>::to_vec, [addresses[3], addresses[0], addresses[2]]);
        let mut shares = [0; 4];
        for key in 0..4_000_u32 {
            let key = all.key(&key.to_be_bytes());
            let first = |route: &Route| route.pick(key, 0, |_| true).map(|at| route.addresses()[at].clone());
            let owner = first(&all).unwrap();
            shares[addresses.iter().position(|address| owner.as_str() == *address).unwrap()] += 1;
            if owner.as_str() != "b:1" {
                assert_eq!(first(&fewer), Some(owner));
            }
        }
        let message = 7_u32.to_be_bytes();
        let order = all.order(&message, 1);
        // Each is who has the key when those in front of it are down.
        for (down, expected) in order.iter().enumerate() {
            let may = |at: usize| !order[..down].contains(&all.addresses()[at]);
            assert_eq!(&all.addresses()[all.pick(all.key(&message), 0, may).unwrap()], expected);
        }
        assert!(shares.iter().all(|share| (900..1100).contains(share)), "{shares:?}");
    }

    #[test]
    fn an_address_that_is_named_twice_counts_once() {
        assert_eq!(Route::round_robin(["a:1", "b:1", "a:1"]).addresses(), ["a:1", "b:1"].map(Address::from));
        assert_eq!(Route::round_robin(<[&str; 0]>::default()).in_turn(3).count(), 0);
    }

    /// Two machines that have the same route must agree on it, also where one of them runs another version. The numbers are those
    /// of FNV-1a of the bytes in little-endian order, mixed.
    #[test]
    fn a_key_has_the_same_hash_on_all_machines() {
        for (hash, expected) in [
            (hash("10.0.0.1:5031"), 0x6e64_a01f_38a8_3bb7),
            (hash(&[1_u8, 2, 3][..]), 0x811d_5e9e_16dc_59ab),
            (hash(&0x0102_u16), 0xbdb8_bfd2_738f_4ddb),
            (hash(&0x0102_0304_u32), 0x725d_cdce_c49f_151a),
            (hash(&0x0102_0304_0506_0708_u64), 0x78ff_eaf7_3501_e948),
            (hash(&(u128::MAX - 1)), 0x8a4f_8d6e_3f57_494d),
            (hash(&-2_i8), 0xdf66_d0b2_40dd_99e1),
            (hash(&-2_i16), 0x40f8_123d_1b97_8ead),
            (hash(&-2_i32), 0xeb70_7ec1_52c4_2d09),
            (hash(&-2_i64), 0x20a0_f5aa_c6d7_b092),
            (hash(&-2_i128), 0x8a4f_8d6e_3f57_494d),
            (hash(&0x0102_0304_usize), 0x7d12_1644_bb0d_7bef),
            (hash(&-2_isize), 0x20a0_f5aa_c6d7_b092),
            (hash(&Some(('k', true))), 0xbb99_0881_e8b2_6f19),
        ] {
            assert_eq!(hash, expected, "{hash:#018x}");
        }
    }

    #[test]
    fn any_turn_has_an_order() {
        let route = Route::round_robin(["a:1", "b:1", "c:1"]);
        // 3 divides the greatest number of 64 bits, and that of 32.
        for (turn, first) in [(0, "a:1"), (4, "b:1"), (usize::MAX, "a:1"), (usize::MAX - 1, "c:1")] {
            let order = route.order(b"", turn);
            assert_eq!((&order[0], order.len()), (&first.into(), 3));
        }
    }
}
