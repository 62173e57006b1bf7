from benchmarks.zoo.sweep import judgement


def explained(row):
    return judgement(row) == "explained"
