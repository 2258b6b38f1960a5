#!/bin/sh
# Makes the directories of a node; may run again and again. As root of group 10001:
# setgid is given up where a directory's group is none of the caller's.
#
#   node-setup.sh                  as the agent runs by default, uid and gid 10001
#   STATE_OWNER=0:0 node-setup.sh  for components/read-any, where it runs as root
set -eu
feedback=${FEEDBACK_DIR:-/var/lib/feedback}
state=${STATE_DIR:-/var/lib/feedback-agent}
group=10001

# Apps write through directories of their own below it, with the group 10001 (supplementalGroups);
# the kubelet makes those with the group and the mode of this one. Nobody else may look in.
mkdir -p "$feedback"
chown "0:$group" "$feedback"
chmod 2770 "$feedback"

# Who can write here can make the agent skip lines: nobody but the agent. One that is right is left alone:
# an agent may be at work in it.
owner=${STATE_OWNER:-10001:10001}
mkdir -p "$state"
if [ "$(stat -c %u:%g:%a "$state")" != "$owner:700" ]; then
  # root's first, from the top down: without DAC_OVERRIDE root cannot look into what is another's alone
  chown 0:0 "$state"
  chmod 0700 "$state"
  find "$state" -type d -exec chown 0:0 {} \;
  chown -R "$owner" "$state"
fi

# Where SELinux is on: containers may use the directories, after a relabelling too.
if command -v semanage >/dev/null && command -v restorecon >/dev/null; then
  for directory in "$feedback" "$state"; do
    semanage fcontext -a -t container_file_t "$directory(/.*)?" 2>/dev/null ||
      semanage fcontext -m -t container_file_t "$directory(/.*)?"
    restorecon -R "$directory"
  done
fi

ls -ldn "$feedback" "$state"
