#!/usr/bin/env bash
# A SLURM cluster on one machine: the controller and two nodes, each with its own host name and network address.
#
#   unshare --net --uts --mount --pid --fork --mount-proc --kill-child tests/slurm/cluster.sh DIRECTORY
#
# Needs root, and the packages slurmctld, slurmd, slurm-client and munge. The new namespaces keep the network, the host
# names and the processes apart from those of the machine; all of it ends with the process that unshare starts. Other
# commands join with nsenter. DIRECTORY holds configuration, logs and state; the file `ready` appears when jobs can run.
set -euo pipefail
directory=$1
mkdir -p "$directory"/{state,log}
export SLURM_CONF=$directory/slurm.conf

cat > "$directory/hosts" <<END
127.0.0.1 localhost
10.213.1.254 login
10.213.1.1 node1
10.213.1.2 node2
END
cat > "$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=login
SlurmUser=root
# A requeued job starts again when the credentials of its first start have expired: by default after two minutes.
AuthInfo=socket=$directory/munge.socket,cred_expire=5
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool-%n
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd-%n.pid
SlurmctldLogFile=$directory/log/slurmctld
SlurmdLogFile=$directory/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
KillWait=5
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
NodeName=node[1-2] CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=60 DefaultTime=10
END
# Without control groups, which containers may lack.
echo CgroupPlugin=cgroup/v1 > "$directory/cgroup.conf"

mount --bind "$directory/hosts" /etc/hosts
mount -t tmpfs tmpfs /run/netns
hostname login
ip link set lo up
ip link add cluster type bridge
ip address add 10.213.1.254/24 dev cluster
ip link set cluster up
dd if=/dev/urandom of="$directory/munge.key" bs=128 count=1 status=none
chmod 400 "$directory/munge.key"
munged --force --socket="$directory/munge.socket" --key-file="$directory/munge.key" \
  --pid-file="$directory/munge.pid" --log-file="$directory/log/munged" --seed-file="$directory/munge.seed"
slurmctld
for number in 1 2; do
  mkdir "$directory/spool-node$number"
  node=node$number
  ip netns add $node
  ip link add $node type veth peer name eth0 netns $node
  ip link set $node master cluster up
  ip -n $node address add 10.213.1.$number/24 dev eth0
  ip -n $node link set eth0 up
  ip -n $node link set lo up
  nsenter --net=/run/netns/$node unshare --uts sh -c "hostname $node && exec slurmd -N $node"
done
until [ "$(sinfo --noheader --format=%T%D)" = idle2 ]; do sleep 0.2; done
touch "$directory/ready"
sleep infinity &
wait # and reap what is orphaned
