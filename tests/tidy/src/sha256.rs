//! SHA-256 (FIPS 180-4), so that this crate needs no other.

/// The digest in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut state: Vec<u32> = primes().take(8).map(|p| fraction(p, 2)).collect();
    let constants: Vec<u32> = primes().take(64).map(|p| fraction(p, 3)).collect();
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() - bytes.len() < 9 {
        padded.resize(padded.len() + 64, 0);
    }
    let at = padded.len() - 8;
    padded[at..].copy_from_slice(&(8 * bytes.len() as u64).to_be_bytes());
    for block in padded.chunks(64) {
        let next = compress(&state, block, &constants);
        state = state.iter().zip(next).map(|(a, b)| a.wrapping_add(b)).collect();
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

fn primes() -> impl Iterator<Item = u128> {
    (2u128..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0))
}

/// The first 32 bits of the fraction of a prime's root.
fn fraction(prime: u128, root: u32) -> u32 {
    let scaled = prime << (32 * root);
    let (mut low, mut high) = (0u128, 1u128 << 40);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if middle.pow(root) <= scaled { low = middle } else { high = middle }
    }
    low as u32
}

fn compress(state: &[u32], block: &[u8], constants: &[u32]) -> Vec<u32> {
    let words = block.chunks(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let mut w: Vec<u32> = words.collect();
    for i in 16..64 {
        let (a, b) = (w[i - 15], w[i - 2]);
        let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
        let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
        w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
    }
    let mut v = state.to_vec();
    for (word, constant) in w.iter().zip(constants) {
        let (a, e) = (v[0], v[4]);
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & v[5]) ^ (!e & v[6]);
        let one = [s1, choice, *constant, *word].iter().fold(v[7], |sum, x| sum.wrapping_add(*x));
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]);
        v.rotate_right(1);
        v[4] = v[4].wrapping_add(one);
        v[0] = one.wrapping_add(s0).wrapping_add(majority);
    }
    v
}

#[test]
fn the_published_digests_come_out() {
    let known = [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
    ];
    for (text, digest) in known {
        assert_eq!(hex(text.as_bytes()), digest, "{text:?}");
    }
}
