#!/usr/bin/env bash
# What a branch changes in parameters and metrics, as Markdown; of Git alone, so that no data is needed.
#
#   .github/metrics.sh REVISION       against the commit where the branch left REVISION
#   .github/metrics.sh --comment FILE  puts FILE on the pull request $PR, in one comment that a later call replaces
set -euo pipefail

MARK="<!-- metrics.sh -->" # by which the comment is found again
CURVE=metrics/curves/validation.tsv

compare() { # REVISION
    local before after
    before=$(git rev-parse --short "$(git merge-base "$1" HEAD)") after=$(git rev-parse --short HEAD)
    printf '%s\n### %s → %s\n' "$MARK" "$before" "$after"
    table Metrics metrics "$before" "$after"
    table Parameters params "$before" "$after"
    charts "$before" "$after"
}

table() { # TITLE, metrics or params, COMMIT COMMIT
    local lines
    lines=$(dvc "$2" diff --md "$3" "$4")
    if [ "$(wc -l <<< "$lines")" -le 2 ]; then # the table's head
        lines="No change."
    fi
    printf '\n#### %s\n\n%s\n' "$1" "$lines"
}

charts() { # COMMIT COMMIT
    local old new
    old=$(column "$1" wer) new=$(column "$2" wer)
    [ "$old" != "$new" ] || return 0
    printf '\n#### Validation WER by step\n'
    if [ "$(column "$1" step)" = "$(column "$2" step)" ]; then
        chart "grey: before, purple: after" "$(column "$2" step)" "$old" "$new"
    else # a chart has one axis
        chart before "$(column "$1" step)" "$old"
        chart after "$(column "$2" step)" "$new"
    fi
}

column() { # COMMIT NAME -> the values of the curve, "250, 500"; nothing where there are none
    git show "$1:$CURVE" 2>/dev/null | awk -F '\t' -v name="$2" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i }
        NR > 1 && at { values = values (values == "" ? "" : ", ") $at }
        END { print values }' || true
}

chart() { # TITLE STEPS VALUES… -> a Mermaid chart, which GitHub draws
    [ -n "$3" ] || return 0
    local colours="#945dd6"
    [ $# -eq 3 ] || colours="#9a9aa5, #945dd6"
    printf '\n```mermaid\n'
    printf '%%%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "%s"}}}}%%%%\n' "$colours"
    printf 'xychart-beta\n    title "%s"\n    x-axis "step" [%s]\n    y-axis "WER, %%"\n' "$1" "$2"
    printf '    line [%s]\n' "${@:3}"
    printf '```\n'
}

comment() { # FILE
    local comments="repos/$GITHUB_REPOSITORY/issues/$PR/comments" mine
    mine=$(gh api --paginate "$comments" --jq \
        ".[] | select(.user.type == \"Bot\" and (.body | startswith(\"$MARK\"))) | .id" | tail -n 1)
    if [ -n "$mine" ]; then
        gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$mine" --field "body=@$1"
    else
        gh api --silent "$comments" --field "body=@$1"
    fi
}

if [ "$1" = --comment ]; then
    comment "$2"
else
    compare "$1"
fi
