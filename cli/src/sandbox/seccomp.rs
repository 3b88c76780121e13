//! Refuses system calls that a confined command does not need and that bypass the other layers.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls for other processes, kernel memory, session keys, mounts, namespaces, files by handle, and
/// the machine itself.
const REFUSED: &[i64] = &[
    // Memory, descriptors and execution of another process.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Key rings, which a session shares.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Programs in the kernel, and counters that observe others.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // What is mounted where: the hidden files are below mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    // A file by its number, whatever is mounted on its path.
    libc::SYS_open_by_handle_at,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
];

/// `clone3` has its flags in memory, which a filter cannot read; libraries fall back to `clone`.
/// The rings of `io_uring` make calls that no filter sees.
const UNKNOWN: &[i64] =
    &[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// `asm-generic/ioctls.h`.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
/// `linux/socket.h`: connects without `connect`, which Landlock's port rules do not cover
/// (github.com/landlock-lsm/linux/issues/41).
const MSG_FASTOPEN: u64 = 0x2000_0000;
/// The highest protocol number of IP itself. Above are those of Linux: SMC (256) and MPTCP (262)
/// reach TCP listeners past Landlock's rules on ports (github.com/landlock-lsm/linux/issues/54).
const LAST_IP_PROTOCOL: u64 = 255;

/// Applies the filters to this thread permanently.
///
/// # Errors
/// When the kernel has no seccomp filters, or the architecture is unknown.
pub(super) fn apply() -> io::Result<()> {
    for program in [
        program(refused()?, libc::EPERM)?,
        program(sockets()?, libc::EPROTONOSUPPORT)?,
        without_other_numbers(program(unknown(), libc::ENOSYS)?),
    ] {
        apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn refused() -> io::Result<Rules> {
    let mut rules: Rules = REFUSED.iter().map(|number| (*number, Vec::new())).collect();
    let mut add = |number: i64, conditions: Vec<SeccompCondition>| -> io::Result<()> {
        rules.entry(number).or_default().push(SeccompRule::new(conditions).map_err(io::Error::other)?);
        Ok(())
    };
    let user_namespace = libc::CLONE_NEWUSER as u64;
    for number in [libc::SYS_unshare, libc::SYS_clone] {
        add(number, vec![word(0, Op::MaskedEq(user_namespace), user_namespace)?])?;
    }
    // Input for the terminal's other readers: the user's shell, after the command has ended. The
    // kernel reads 32 bits.
    for request in [TIOCSTI, TIOCLINUX] {
        add(libc::SYS_ioctl, vec![word(1, Op::Eq, request)?])?;
    }
    for (number, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        add(number, vec![word(flags, Op::MaskedEq(MSG_FASTOPEN), MSG_FASTOPEN)?])?;
    }
    // Limits of another process.
    let new_limit = SeccompCondition::new(2, Length::Qword, Op::Ne, 0).map_err(io::Error::other)?;
    add(libc::SYS_prlimit64, vec![word(0, Op::Ne, 0)?, new_limit])?;
    Ok(rules)
}

fn sockets() -> io::Result<Rules> {
    let other_family = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]
        .iter()
        .map(|family| word(0, Op::Ne, *family as u64))
        .collect::<io::Result<Vec<_>>>()?;
    let mut rules = vec![SeccompRule::new(other_family).map_err(io::Error::other)?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let conditions = vec![word(0, Op::Eq, family as u64)?, word(2, Op::Gt, LAST_IP_PROTOCOL)?];
        rules.push(SeccompRule::new(conditions).map_err(io::Error::other)?);
    }
    Ok([(libc::SYS_socket, rules)].into())
}

fn unknown() -> Rules {
    UNKNOWN.iter().map(|number| (*number, Vec::new())).collect()
}

/// A condition on the lower 32 bits of an argument.
fn word(argument: u8, op: Op, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, Length::Dword, op, value).map_err(io::Error::other)
}

fn program(rules: Rules, errno: i32) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

/// x86-64 has a second set of call numbers (x32), from 2^30 on. All of them are refused as unknown.
fn without_other_numbers(program: BpfProgram) -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of `seccomp_data.nr`
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let enosys = u32::from(SeccompAction::Errno(libc::ENOSYS.unsigned_abs()));
    let step = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    let mut all = vec![step(LOAD_NUMBER, 0, 0), step(JUMP_IF_AT_LEAST, 1, 0x4000_0000), step(RETURN, 0, enosys)];
    all.extend(program);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_are_below_the_kernels_limit() {
        for (rules, errno) in [(refused(), 1), (sockets(), 93), (Ok(unknown()), 38)] {
            let length = without_other_numbers(program(rules.unwrap(), errno).unwrap()).len();
            assert!((10..4096).contains(&length), "{length}");
        }
    }
}
