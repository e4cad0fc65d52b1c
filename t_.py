import torch, time, warnings
from torch import nn
from calmrl_prob.datasets import load_emoji
from calmrl_prob.missingness import mcar
from calmrl_prob.encoders import *
from calmrl_prob.training import align, InputImputation
from calmrl_prob.evaluation.representations import cosine_recall
import calmrl_prob as cal
class NCE(nn.Module):
    def __init__(s,t=.07): super().__init__(); s.log_t=nn.Parameter(torch.tensor(t).log())
    def forward(s,v):
        tot=0;c=0
        B,M,D=v.values.shape
        for i in range(M):
            for j in range(i):
                w=v.weights[:,i]*v.weights[:,j]; keep=w>0
                if keep.sum()<2: continue
                l=v.values[keep,i]@v.values[keep,j].T/s.log_t.exp(); y=torch.arange(len(l)); ww=w[keep]
                f=torch.nn.functional.cross_entropy
                tot=tot+((f(l,y,reduction='none')+f(l.T,y,reduction='none'))/2*ww).sum(); c=c+ww.sum()
        return tot/c
d=load_emoji(); tr,va=d.train.split(.85,seed=0); m=tr.mask(mcar(tr,.5,seed=0)); 
print(m)
for name in ("none","imputed_mean","imputed_draw"):
    t=time.time(); a=align(m, build_encoders("mlp",m.dims,64,hidden=(256,)), NCE(), name, validation=va, max_epochs=60, patience=10, latent_dim=32); 
    print(name, a.stop_reason,a.best_epoch,len(a.history),time.time()-t, a.history.iloc[-1].to_dict(), cosine_recall(a.represent(d.test))["R@1"].mean())
