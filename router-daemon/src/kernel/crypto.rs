//! The kernel's own crypto: which of several drivers of an algorithm it takes. `NETLINK_CRYPTO`, of which this is the one
//! message we need.

use std::io;

use nix::errno::Errno;

use super::netlink::{Message, Socket, errno};

/// The higher, the sooner it is taken by whoever asks for the algorithm from here on. The kernel drops what it had built
/// on the driver for others to find (`authenc(…)` and the like); who holds such a one keeps it.
pub fn set_priority(driver: &str, priority: u32) -> io::Result<()> {
    let message = update(driver, priority).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{driver}` is no name of a driver: 1 to {} bytes", NAME - 1),
        )
    })?;
    let mut socket = Socket::open(NETLINK_CRYPTO).map_err(|error| match errno(&error) {
        Some(code) if code == Errno::EPROTONOSUPPORT as i32 => {
            io::Error::new(io::ErrorKind::Unsupported, "this kernel has no NETLINK_CRYPTO: `modprobe crypto_user`")
        }
        _ => error,
    })?;
    socket.ask(message).map(drop)
}

/// `struct crypto_user_alg` of `linux/cryptouser.h`: the names of the algorithm, of the driver and of the module, then
/// type, mask, references and flags. The driver's name is enough to find it.
fn update(driver: &str, priority: u32) -> Option<Message> {
    let mut header = [0; 3 * NAME + 4 * 4];
    let name = header.get_mut(NAME..NAME + driver.len()).filter(|name| !name.is_empty() && name.len() < NAME)?;
    name.copy_from_slice(driver.as_bytes());
    Some(Message::new(CRYPTO_MSG_UPDATEALG, 0, &header).attr(CRYPTOCFGA_PRIORITY_VAL, &priority.to_ne_bytes()))
}

const NETLINK_CRYPTO: isize = 21;
const CRYPTO_MSG_UPDATEALG: u16 = 0x12;
const CRYPTOCFGA_PRIORITY_VAL: u16 = 1;
/// `CRYPTO_MAX_NAME` of that file, with the NUL.
const NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_driver_and_the_priority() {
        let message = update("qat_aes_cbc_hmac_sha256", 10_000).unwrap().received();
        assert_eq!((message.kind, message.body.len()), (0x12, 208 + 8));
        assert_eq!(&message.body[64..88], b"qat_aes_cbc_hmac_sha256\0");
        assert!(message.body[..64].iter().chain(&message.body[88..208]).all(|byte| *byte == 0));
        assert_eq!(message.attributes(208).u32(CRYPTOCFGA_PRIORITY_VAL), Some(10_000));
    }

    #[test]
    fn what_is_no_name_is_not_sent() {
        assert!(update(&"x".repeat(63), 1).is_some());
        for name in ["", &"x".repeat(64), &"x".repeat(1_000)] {
            assert!(update(name, 1).is_none(), "{name}");
            assert_eq!(set_priority(name, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
